(function () {
  "use strict";
  var root = document.documentElement;
  var toggle = document.getElementById("theme");
  var system = window.matchMedia("(prefers-color-scheme: dark)");
  function isDark() {
    return root.classList.contains("dark") || (system.matches && !root.classList.contains("light"));
  }
  function label() {
    toggle.textContent = isDark() ? "Light" : "Dark";
    toggle.setAttribute("aria-label", "Switch to the " + (isDark() ? "light" : "dark") + " theme");
  }
  toggle.hidden = false;
  toggle.addEventListener("click", function () {
    var dark = isDark();
    root.classList.remove("dark", "light");
    root.classList.add(dark ? "light" : "dark");
    label();
  });
  label();

  document.querySelectorAll(".legend button").forEach(function (button) {
    button.addEventListener("click", function () {
      var shown = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(shown));
      document.querySelectorAll("polyline[data-series]").forEach(function (line) {
        if (line.dataset.series === button.dataset.series) {
          line.classList.toggle("hidden", !shown);
        }
      });
    });
  });

  var opened = [];
  window.addEventListener("beforeprint", function () {
    opened = Array.prototype.filter.call(document.querySelectorAll("details"), function (part) {
      return !part.open;
    });
    opened.forEach(function (part) { part.open = true; });
  });
  window.addEventListener("afterprint", function () {
    opened.forEach(function (part) { part.open = false; });
  });
})();
