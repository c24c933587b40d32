// Follows a run: reloads the part that changes whenever the server reports a change, until the run stops.
document.addEventListener("DOMContentLoaded", () => {
  const now = document.getElementById("now");
  const source = new EventSource(now.dataset.live);
  let waiting = false, first = true;
  const look = () => {
    if (waiting) return;
    waiting = true;
    setTimeout(() => {
      waiting = false;
      htmx.ajax("GET", now.dataset.now, { target: "#now", swap: "innerHTML" });
    }, 500);
  };
  for (const failure of ["htmx:sendError", "htmx:timeout", "htmx:responseError"]) {
    document.body.addEventListener(failure, (event) => { if (event.detail.target === now) setTimeout(look, 2000); });
  }
  source.addEventListener("changed", () => { if (!first) look(); first = false; });
  source.addEventListener("over", (event) => {
    source.close();
    now.dataset.over = JSON.parse(event.data).state;
    look();
  });
});
