"""Attention whose output is linear in two softmaxes: the donor's and the row's own."""

from .api import BACKENDS, Impl, RoutedAttention, routed_attention, settle

__all__ = ["routed_attention", "settle", "RoutedAttention", "Impl", "BACKENDS"]
