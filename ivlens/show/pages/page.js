// Draws every .plot of a page from the figures in it, and again when the screen turns dark or light.
(function () {
  "use strict";
  var figures = JSON.parse(document.getElementById("figures").textContent);
  var dark = window.matchMedia("(prefers-color-scheme: dark)");
  var config = { responsive: true, displaylogo: false, displayModeBar: false };
  // of a map; plotly writes long lists of numbers as packed bytes, with their shape
  function nColumns(map) {
    if (map.x) { return map.x.length; }
    return map.z.shape ? Number(map.z.shape.split(",")[1]) : map.z[0].length;
  }
  function draw(place) {
    var figure = figures[place.dataset.figure][dark.matches ? "dark" : "light"];
    // a copy, because plotly writes into what it is given
    var copy = JSON.parse(JSON.stringify(figure));
    var cells = copy.data.filter(function (trace) { return trace.type === "heatmap"; });
    // numbers would overlap in narrow cells; 170 px are those of labels and scale
    if (cells.length && (place.clientWidth - 170) / nColumns(cells[0]) < 44) { copy.layout.annotations = []; }
    Plotly.react(place, copy.data, copy.layout, config);
  }
  function drawAll() { document.querySelectorAll(".plot").forEach(draw); }
  document.querySelectorAll("select[data-shown-in]").forEach(function (select) {
    select.addEventListener("change", function () {
      var place = document.getElementById(select.dataset.shownIn);
      place.dataset.figure = select.value;
      draw(place);
    });
  });
  dark.addEventListener("change", drawAll);
  drawAll();
})();
