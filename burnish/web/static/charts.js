// Draws the figures of a page, and those that are loaded later.
(() => {
  const drawNew = (root) => {
    for (const script of root.querySelectorAll("script.drawing:not([data-drawn])")) {
      script.dataset.drawn = "yes";
      const figures = JSON.parse(script.textContent);
      draw(figures);
    }
  };
  document.addEventListener("DOMContentLoaded", () => {
    drawNew(document);
    document.body.addEventListener("htmx:afterSettle", (event) => drawNew(event.detail.target));
  });
})();
