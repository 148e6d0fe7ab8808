"""Each layer's route, through a network outside PyTorch: the last check of an engine's build.

An engine of ours probes whatever answers it before the first edit; this finds a deaf layer sooner.
"""

from __future__ import annotations

from pivotal.model.load import Model
from pivotal.query import Conditioning
from pivotal.runtime.buckets import BucketedDenoiser, Buckets
from pivotal.runtime.exported.denoiser import ExportedDenoiser
from pivotal.runtime.exported.network import Network
from pivotal.runtime.exported.parts import capacity_of, pixel_unit, unet_parts
from pivotal.runtime.exported.record import ExportRecord
from pivotal.runtime.probe import probe_routes

_ROWS = 4  # in a batch, where the profile lets them be chosen: more need more memory


def probe(
    model: Model, routed: Network, record: ExportRecord, buckets: tuple[int, ...] = ()
) -> dict[str, float]:
    """How much each layer's route alone changes eps of random inputs, at the smallest size.

    routed: the UNet with routes. buckets: the batches that it takes; those of the record's profile
    if none. Nothing is asked of a network for single rows, which no edit fits into.
    Raises EditWithoutEffectError naming the layers that ignore their route.
    """
    rows, scale = record.profile.rows, model.autoencoder.scale
    sizes = buckets or tuple(range(rows.low, rows.high + 1))
    if sizes[-1] < 2:
        return {}
    exported = ExportedDenoiser("the probe", routed, routed, record, scale=scale)
    denoiser = BucketedDenoiser(
        exported, Buckets(sizes, record.capacity.columns), model.unet.layers
    )
    unit = pixel_unit(model)
    part = next(unet_parts(model.unet, capacity_of(model), record.profile, scale, unit))
    given = part.inputs(2, record.profile.height.low, record.profile.width.low, 0)
    told = Conditioning(given["hidden_states"], given.get("pooled"), given.get("time_ids"))
    most = denoiser.buckets.fit(min(_ROWS, sizes[-1]))
    return probe_routes(denoiser, model.unet.layers, told, given["latents"].float(), max_rows=most)
