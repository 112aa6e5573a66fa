"use strict";
(function () {
  document.documentElement.classList.add("js");
  var LIMIT = 40; // how far in the map can be zoomed

  function clamp(x, low, high) { return Math.min(Math.max(x, low), high); }

  function length(metres) { return metres >= 1000 ? metres / 1000 + " km" : metres + " m"; }

  function niceLength(metres) { // the largest of 1, 2, 5 x 10^n that fits
    var power = Math.pow(10, Math.floor(Math.log10(metres)));
    var lead = metres / power;
    return (lead >= 5 ? 5 : lead >= 2 ? 2 : 1) * power;
  }

  function setUp(figure) {
    var stage = figure.querySelector(".stage"), svg = stage.querySelector("svg");
    var scale = stage.querySelector(".scale"), metres = parseFloat(stage.dataset.metres);
    var whole = svg.viewBox.baseVal, width = whole.width, height = whole.height;
    var zoom = 1, cx = width / 2, cy = height / 2;
    var fingers = new Map(), spread = 0;

    function perPixel() { // map units in one pixel of the screen
      return Math.max(width / zoom / stage.clientWidth, height / zoom / stage.clientHeight);
    }

    function draw() {
      cx = clamp(cx, width / zoom / 2, width - width / zoom / 2);
      cy = clamp(cy, height / zoom / 2, height - height / zoom / 2);
      svg.setAttribute("viewBox", [cx - width / zoom / 2, cy - height / zoom / 2, width / zoom, height / zoom].join(" "));
      stage.classList.toggle("near", zoom > 1);
      if (metres > 0 && stage.clientWidth > 0) {
        var nice = niceLength(110 * perPixel() * metres);
        scale.classList.add("on");
        scale.firstChild.data = length(nice);
        scale.lastChild.style.width = nice / metres / perPixel() + "px";
      }
    }

    function at(x, y) { // a place on the screen, in map units
      var box = stage.getBoundingClientRect(), unit = perPixel();
      return [cx + (x - box.left - box.width / 2) * unit, cy + (y - box.top - box.height / 2) * unit];
    }

    function zoomBy(factor, x, y) { // the place under (x, y) stays where it is
      var held = x === undefined ? [cx, cy] : at(x, y), before = zoom;
      zoom = clamp(zoom * factor, 1, LIMIT);
      cx = held[0] + (cx - held[0]) * before / zoom;
      cy = held[1] + (cy - held[1]) * before / zoom;
      draw();
    }

    function panBy(dx, dy) { cx -= dx * perPixel(); cy -= dy * perPixel(); draw(); }

    function reset() { zoom = 1; draw(); }

    stage.addEventListener("keydown", function (event) {
      var step = 80;
      var acts = {
        ArrowLeft: function () { panBy(step, 0); }, ArrowRight: function () { panBy(-step, 0); },
        ArrowUp: function () { panBy(0, step); }, ArrowDown: function () { panBy(0, -step); },
        "+": function () { zoomBy(1.5); }, "=": function () { zoomBy(1.5); },
        "-": function () { zoomBy(1 / 1.5); }, "0": reset, Home: reset
      };
      var arrow = event.key.indexOf("Arrow") === 0;
      if (event.target !== stage || event.ctrlKey || event.metaKey || event.altKey || !acts[event.key]) return;
      if (arrow && zoom === 1) return; // nothing to move: let the page scroll
      acts[event.key]();
      event.preventDefault();
    });
    stage.addEventListener("wheel", function (event) { // the page scrolls on unless the map was chosen, or Ctrl is held
      if (!event.ctrlKey && !event.metaKey && document.activeElement !== stage) return;
      zoomBy(Math.exp(-clamp(event.deltaY, -120, 120) / 300), event.clientX, event.clientY);
      event.preventDefault();
    }, { passive: false });
    stage.addEventListener("dblclick", function (event) {
      if (!event.target.closest("button")) zoomBy(event.shiftKey ? 0.5 : 2, event.clientX, event.clientY);
    });
    stage.addEventListener("pointerdown", function (event) {
      if (event.target.closest("button")) return;
      fingers.set(event.pointerId, [event.clientX, event.clientY]);
      stage.setPointerCapture(event.pointerId);
      stage.classList.add("held");
      spread = 0;
    });
    stage.addEventListener("pointermove", function (event) {
      var before = fingers.get(event.pointerId);
      if (!before) return;
      fingers.set(event.pointerId, [event.clientX, event.clientY]);
      var all = Array.from(fingers.values());
      panBy((event.clientX - before[0]) / all.length, (event.clientY - before[1]) / all.length);
      if (all.length === 2) {
        var apart = Math.hypot(all[0][0] - all[1][0], all[0][1] - all[1][1]);
        if (spread > 0 && apart > 0) zoomBy(apart / spread, (all[0][0] + all[1][0]) / 2, (all[0][1] + all[1][1]) / 2);
        spread = apart;
      }
    });
    ["pointerup", "pointercancel"].forEach(function (kind) {
      stage.addEventListener(kind, function (event) {
        fingers.delete(event.pointerId);
        spread = 0;
        if (!fingers.size) stage.classList.remove("held");
      });
    });
    stage.querySelectorAll(".tools button").forEach(function (button, i) {
      button.addEventListener("click", [function () { zoomBy(1.7); }, function () { zoomBy(1 / 1.7); }, reset][i]);
    });

    var heat = svg.querySelector(".heat"), lines = svg.querySelectorAll(".lines, .halo");
    var slider = figure.querySelector("input[type=range]"), box = figure.querySelector("input[type=checkbox]");
    if (slider) slider.addEventListener("input", function () { heat.setAttribute("opacity", slider.value / 100); });
    if (box) box.addEventListener("change", function () {
      lines.forEach(function (line) { line.style.display = box.checked ? "" : "none"; });
    });
    new ResizeObserver(draw).observe(stage);
    window.addEventListener("beforeprint", reset);
    draw();
  }

  var figures = Array.from(document.querySelectorAll(".maps figure"));
  figures.forEach(setUp);
  var picker = document.querySelector(".picker");
  if (picker) {
    var select = picker.querySelector("select");
    var choose = function () { figures.forEach(function (figure, i) { figure.hidden = i !== select.selectedIndex; }); };
    select.addEventListener("change", choose);
    choose();
  }
})();
