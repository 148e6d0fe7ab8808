for (const stage of document.querySelectorAll(".stage")) {
  const range = stage.querySelector("input");
  const show = () => {
    stage.style.setProperty("--at", `${range.value}%`);
    range.setAttribute("aria-valuetext", `${range.value} percent`);
  };
  // A range's thumb has a width of its own: the line follows the pointer exactly instead.
  const follow = (event) => {
    const box = stage.getBoundingClientRect();
    const share = (event.clientX - box.left) / box.width;
    range.value = Math.round(100 * Math.min(1, Math.max(0, share)));
    show();
  };
  range.addEventListener("input", show);
  range.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    event.preventDefault();
    range.focus();
    range.setPointerCapture(event.pointerId);
    follow(event);
  });
  range.addEventListener("pointermove", (event) => {
    if (range.hasPointerCapture(event.pointerId)) follow(event);
  });
  show();
}
