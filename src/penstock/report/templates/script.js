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

  function seconds(value) {
    return value < 1 ? (value * 1000).toPrecision(3) + " ms" : value.toPrecision(3) + " s";
  }
  function heightAt(line, x) {
    var points = line.points;
    for (var i = 1; i < points.numberOfItems; i += 1) {
      var a = points.getItem(i - 1), b = points.getItem(i);
      if (b.x >= x) {
        return a.x >= x ? a.y : a.y + (b.y - a.y) * (x - a.x) / (b.x - a.x);
      }
    }
    return points.getItem(points.numberOfItems - 1).y;
  }
  document.querySelectorAll("svg[data-low]").forEach(function (chart) {
    var d = chart.dataset;
    var left = +d.left, right = +d.right, top = +d.top, bottom = +d.bottom;
    var low = +d.low, high = +d.high;
    var readout = document.createElement("p");
    readout.className = "readout";
    readout.textContent = "Point at the chart to read shares.";
    chart.parentNode.appendChild(readout);
    var rule = document.createElementNS("http://www.w3.org/2000/svg", "line");
    rule.setAttribute("class", "cross hidden");
    rule.setAttribute("y1", top);
    rule.setAttribute("y2", bottom);
    chart.appendChild(rule);
    chart.addEventListener("pointermove", function (event) {
      var point = new DOMPoint(event.clientX, event.clientY)
        .matrixTransform(chart.getScreenCTM().inverse());
      var x = Math.min(right, Math.max(left, point.x));
      var part = (x - left) / (right - left);
      var value = d.log === "1" ? low * Math.pow(high / low, part) : low + (high - low) * part;
      var shares = [];
      chart.querySelectorAll("polyline:not(.hidden)").forEach(function (line) {
        var share = (bottom - heightAt(line, x)) / (bottom - top);
        shares.push(line.dataset.series + " " + (100 * share).toFixed(0) + "%");
      });
      rule.setAttribute("x1", x);
      rule.setAttribute("x2", x);
      rule.classList.remove("hidden");
      readout.textContent = "Within " + seconds(value) + ": " + shares.join(", ");
    });
    chart.addEventListener("pointerleave", function () { rule.classList.add("hidden"); });
  });

  var opened = [], theme = "";
  window.addEventListener("beforeprint", function () {
    opened = Array.prototype.filter.call(document.querySelectorAll("details"), function (part) {
      return !part.open;
    });
    opened.forEach(function (part) { part.open = true; });
    theme = root.className;
    root.className = "light";
  });
  window.addEventListener("afterprint", function () {
    opened.forEach(function (part) { part.open = false; });
    root.className = theme;
  });
})();
