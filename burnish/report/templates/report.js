function draw(figures) {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const style = () => {
    const ink = getComputedStyle(document.documentElement);
    const soft = ink.getPropertyValue("--soft").trim(), line = ink.getPropertyValue("--line").trim();
    return { soft, line };
  };
  const layout = (figure, node) => {
    const { soft, line } = style();
    const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true };
    const own = figure.layout, merged = {
      margin: { l: 52, r: own.yaxis2?.overlaying ? 46 : 14, t: 10, b: 44 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: soft, size: 12, family: "system-ui, sans-serif" }, hovermode: "x unified", hoverlabel: { font: { size: 12 } },
      legend: { orientation: "h", y: 0, yref: "container", yanchor: "bottom", font: { size: 11 } }, ...own,
      xaxis: { ...axis, ...own.xaxis }, yaxis: { ...axis, ...own.yaxis },
    };
    for (const name of Object.keys(own)) if (/^yaxis\d/.test(name)) merged[name] = { ...axis, tickmode: "auto", ...own[name] };
    return merged;
  };
  const paint = () => {
    for (const [id, figure] of Object.entries(figures)) {
      const node = document.getElementById(id);
      Plotly.react(node, figure.data, layout(figure, node), { displayModeBar: false, responsive: true });
    }
  };
  paint();
  dark.addEventListener("change", paint);
}
