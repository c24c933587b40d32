// For every page with forms: requests carry the CSRF token, and errors are shown as text.
(() => {
  const csrf = document.querySelector("meta[name=csrf]").content;
  document.addEventListener("htmx:configRequest", (event) => { event.detail.headers["X-CSRF-Token"] = csrf; });
  const notice = document.getElementById("notice");
  if (!notice || document.getElementById("task")) return;  // the labelling page handles errors itself
  const tell = (words) => { notice.textContent = words; };
  document.addEventListener("htmx:beforeRequest", () => tell("The models are working."));
  document.addEventListener("htmx:afterSwap", () => tell(""));
  document.addEventListener("htmx:sendError", () => tell("The server does not answer; try again."));
  document.addEventListener("htmx:timeout", () => tell("The models took too long; try again."));
  document.addEventListener("htmx:responseError", (event) => {
    if (event.detail.xhr.status === 401) return location.reload();
    tell(new DOMParser().parseFromString(event.detail.xhr.responseText, "text/html").body.textContent.trim());
  });
})();
