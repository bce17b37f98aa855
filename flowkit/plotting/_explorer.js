// The page of `flowkit.plotting.explorer`: draws what the element #data holds, at the time and the stage of the sliders.
// Every change goes through `draw`, which makes all traces anew from `state`; nothing else keeps a copy of anything.
"use strict";

(() => {
  const element = (id) => document.getElementById(id);
  const data = JSON.parse(element("data").textContent);
  const { size, lows, highs, colors } = data;
  const grid = decode(data.grid);
  const fieldTimes = decode(data.field_times);
  const target = data.target && decode(data.target);
  const stages = data.stages.map((stage) => ({
    label: stage.label,
    times: decode(stage.times).values,
    points: decode(stage.points),
    field: stage.field && decode(stage.field),
  }));
  // The time is that of the slider, which may have been moved while the page was loading; `frame` is the request of the
  // next frame while time runs, 0 while it stands still.
  const state = { t: element("time").valueAsNumber, stage: stages.length - 1, shown: {}, frame: 0 };

  // ---- arrays

  // {shape, values} of an array that was written as little-endian float32 in base64, in row-major order.
  function decode({ shape, base64 }) {
    const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
    const view = new DataView(bytes.buffer);
    return { shape, values: Float32Array.from({ length: bytes.length / 4 }, (_, i) => view.getFloat32(4 * i, true)) };
  }

  // Where `t` lies among increasing `times`: between entries `index` and `index + 1`, held at both ends.
  function locate(times, t) {
    const last = times.length - 2;
    let index = 0;
    while (index < last && times[index + 1] <= t) index += 1;
    const fraction = (t - times[index]) / (times[index + 1] - times[index]);
    return { index, fraction: Math.min(Math.max(fraction, 0), 1) };
  }

  // Exact at both ends, also where the other one is not finite.
  function mix(a, b, fraction) {
    return fraction === 0 ? a : fraction === 1 ? b : a + fraction * (b - a);
  }

  // The particles of a stage at time `t`, one array per coordinate: straight lines between the saved times.
  function particlesAt({ times, points }, t) {
    const [number, steps] = points.shape;
    const { index, fraction } = locate(times, t);
    return axes((axis) =>
      Array.from({ length: number }, (_, i) => {
        const at = (step) => points.values[(i * steps + step) * size + axis];
        return mix(at(index), at(index + 1), fraction);
      }),
    );
  }

  // The velocity at grid point `i` and time `t`, between the two nearest of the times at which it is known.
  function velocityAt(field, t, i) {
    const { index, fraction } = locate(fieldTimes.values, t);
    const number = grid.shape[0];
    return axes((axis) => {
      const at = (step) => field.values[(step * number + i) * size + axis];
      return mix(at(index), at(index + 1), fraction);
    });
  }

  function axes(make) {
    return Array.from({ length: size }, (_, axis) => make(axis));
  }

  // ---- density: an isotropic Gaussian kernel on particles, which factorizes over the axes

  // Values of the kernel, one array per particle, at the positions along one axis.
  function kernel(coordinates, positions) {
    const scale = 1 / (data.bandwidth * Math.sqrt(2 * Math.PI));
    return coordinates.map((center) =>
      positions.map((x) => scale * Math.exp(-0.5 * ((x - center) / data.bandwidth) ** 2)),
    );
  }

  function finite(coordinates) {
    const keep = coordinates[0].map((_, i) => coordinates.every((values) => Number.isFinite(values[i])));
    return coordinates.map((values) => values.filter((_, i) => keep[i]));
  }

  function density1d([x], positions) {
    const rows = kernel(x, positions);
    return positions.map((_, j) => rows.reduce((sum, row) => sum + row[j], 0) / rows.length);
  }

  function density2d([x, y], [columns, rows]) {
    const alongX = kernel(x, columns);
    const alongY = kernel(y, rows);
    return rows.map((_, r) => {
      const sums = new Float64Array(columns.length);
      for (let i = 0; i < x.length; i += 1) {
        const weight = alongY[i][r] / x.length;
        for (let c = 0; c < sums.length; c += 1) sums[c] += weight * alongX[i][c];
      }
      return Array.from(sums);
    });
  }

  // `number` positions along an axis, from limit to limit.
  function positionsAlong(axis, number) {
    const step = (highs[axis] - lows[axis]) / (number - 1);
    return Array.from({ length: number }, (_, i) => lows[axis] + i * step);
  }

  // ---- lines: many of them in one trace, with a gap after each

  function addLine(line, ...corners) {
    for (const [x, y] of corners) {
      line.x.push(x);
      line.y.push(y);
    }
    line.x.push(null);
    line.y.push(null);
  }

  // The first paths of a stage: in one dimension over time, in two in the plane.
  function pathLines({ times, points }) {
    const line = { x: [], y: [] };
    const [number, steps] = points.shape;
    for (let i = 0; i < Math.min(number, data.num_paths); i += 1) {
      const row = (step) => points.values.slice((i * steps + step) * size, (i * steps + step + 1) * size);
      const corner = (step) => (size === 1 ? [times[step], row(step)[0]] : row(step));
      addLine(line, ...Array.from({ length: steps }, (_, step) => corner(step)));
    }
    return line;
  }

  // In two dimensions arrows at time `t`; speeds above `data.speed` have arrows of the same, full length.
  function arrows(field, t) {
    const line = { x: [], y: [] };
    const cell = grid.values[size] - grid.values[0];
    for (let i = 0; i < grid.shape[0]; i += 1) {
      const [u, v] = velocityAt(field, t, i);
      const speed = Math.hypot(u, v);
      if (!(speed > 0 && Number.isFinite(speed))) continue;
      const length = (cell * Math.min(speed / data.speed, 1)) / speed;
      const [x, y] = [grid.values[2 * i], grid.values[2 * i + 1]];
      const tip = [x + length * u, y + length * v];
      const barb = (side) => [tip[0] - 0.3 * length * (u + side * v), tip[1] - 0.3 * length * (v - side * u)];
      addLine(line, [x, y], tip, barb(0.6), tip, barb(-0.6));
    }
    return line;
  }

  // In one dimension the slopes of the paths, at all times: dashes of equal length once both axes are scaled to length 1.
  function slopes(field) {
    const line = { x: [], y: [] };
    const half = 0.35 * (fieldTimes.values[1] - fieldTimes.values[0]);
    for (const t of fieldTimes.values) {
      for (let i = 0; i < grid.shape[0]; i += 1) {
        const [v] = velocityAt(field, t, i);
        if (!Number.isFinite(v)) continue;
        const dt = half / Math.hypot(1, v / (highs[0] - lows[0]));
        const x = grid.values[i];
        addLine(line, [t - dt, x - v * dt], [t + dt, x + v * dt]);
      }
    }
    return line;
  }

  // ---- traces

  const columnsOf = ({ shape, values }) => axes((axis) => Array.from({ length: shape[0] }, (_, i) => values[i * size + axis]));
  const lines = (color, width, opacity) => ({ type: "scatter", mode: "lines", line: { color, width }, opacity, hoverinfo: "skip" });
  const markers = (color, area, opacity) => ({ type: "scatter", mode: "markers", marker: { color, size: area, opacity } });

  function planeTraces(stage, t) {
    const particles = particlesAt(stage, t);
    const [x, y] = particles;
    const positions = axes((axis) => positionsAlong(axis, 61));
    const traces = {};
    if (state.shown.density) {
      const scale = [[0, "rgba(255,255,255,0)"], [1, colors.density]];
      const image = { type: "heatmap", showscale: false, zsmooth: "best", zmin: 0, colorscale: scale, hoverinfo: "skip" };
      traces.density = { ...image, x: positions[0], y: positions[1], z: density2d(finite(particles), positions) };
    }
    if (state.shown.target) {
      const [u, v] = columnsOf(target);
      traces.target = { ...markers(colors.target, 3.5, 0.4), x: u, y: v };
    }
    if (state.shown.field && stage.field) traces.field = { ...lines(colors.field, 1, 0.75), ...arrows(stage.field, t) };
    if (state.shown.paths) traces.paths = { ...lines(colors.paths, 1, 0.45), ...pathLines(stage) };
    if (state.shown.particles) traces.particles = { ...markers(colors.particles, 4.5, 0.85), x, y };
    return traces;
  }

  function lineTraces(stage, t) {
    const particles = particlesAt(stage, t);
    const [x] = particles;
    const positions = positionsAlong(0, 161);
    const side = { xaxis: "x2", y: positions };
    const traces = {};
    if (state.shown.field && stage.field) traces.field = { ...lines(colors.field, 1, 0.6), ...slopes(stage.field) };
    if (state.shown.paths) traces.paths = { ...lines(colors.paths, 1, 0.45), ...pathLines(stage) };
    if (state.shown.particles) traces.particles = { ...markers(colors.particles, 5, 0.7), x: x.map(() => t), y: x };
    if (state.shown.density) {
      const values = density1d(finite(particles), positions);
      traces.density = { ...lines(colors.particles, 2, 1), ...side, x: values };
    }
    if (state.shown.target) {
      const values = density1d(columnsOf(target), positions);
      traces.target = { ...lines(colors.target, 2, 1), ...side, x: values };
    }
    return traces;
  }

  const look = { zeroline: false, gridcolor: "#e9e9e9", linecolor: "#b0b0b0", showline: true };
  const across = { ...look, range: [lows[size - 1], highs[size - 1]] };

  function layout() {
    const common = { showlegend: false, hovermode: "closest", margin: { l: 45, r: 10, t: 10, b: 40 }, uirevision: "kept" };
    if (size === 2) {
      return { ...common, xaxis: { ...look, range: [lows[0], highs[0]], constrain: "domain" }, yaxis: { ...across, scaleanchor: "x" } };
    }
    const now = { type: "line", x0: state.t, x1: state.t, y0: 0, y1: 1, yref: "paper", line: { color: "#999999", width: 1 } };
    const time = { ...look, domain: [0, 0.74], range: [-0.03, 1.03], title: { text: "time (0 noise, 1 data)" } };
    const side = { ...look, domain: [0.77, 1], rangemode: "tozero", title: { text: "density" } };
    return { ...common, shapes: [now], xaxis: time, xaxis2: side, yaxis: { ...across, title: { text: "x" } } };
  }

  function draw() {
    const stage = stages[state.stage];
    element("time-text").textContent = `t = ${state.t.toFixed(2)}`;
    element("stage-text").textContent = stage.label;
    element("play").textContent = state.frame ? "Pause" : "Play";
    const named = (size === 1 ? lineTraces : planeTraces)(stage, state.t);
    const traces = Object.entries(named).map(([name, trace]) => ({ ...trace, name }));
    Plotly.react(element("plot"), traces, layout(), { responsive: true, displaylogo: false });
  }

  // ---- controls

  // One pass from noise to data takes four seconds, however long a frame takes.
  function play() {
    const start = state.t < 1 ? state.t : 0;
    const first = performance.now();
    const step = (now) => {
      state.t = Math.min(start + Math.max(now - first, 0) / 4000, 1);
      state.frame = state.t < 1 ? requestAnimationFrame(step) : 0;
      element("time").value = state.t;
      draw();
    };
    state.frame = requestAnimationFrame(step);
  }

  function pause() {
    cancelAnimationFrame(state.frame);
    state.frame = 0;
  }

  function addLayer(name, there) {
    state.shown[name] = there;
    if (!there) return;
    const label = document.createElement("label");
    const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: true, id: `show-${name}` });
    box.addEventListener("change", () => {
      state.shown[name] = box.checked;
      draw();
    });
    label.append(box, ` ${name}`);
    element("layers").append(label);
  }

  addLayer("particles", true);
  addLayer("paths", true);
  addLayer("field", stages.some((stage) => stage.field));
  addLayer("density", true);
  addLayer("target", Boolean(target));

  element("time").addEventListener("input", (event) => {
    pause();
    state.t = Number(event.target.value);
    draw();
  });
  element("play").addEventListener("click", () => {
    if (state.frame) pause();
    else play();
    draw();
  });
  element("stage").max = stages.length - 1;
  element("stage").value = state.stage;
  element("stage").addEventListener("input", (event) => {
    state.stage = Number(event.target.value);
    draw();
  });
  element("training").hidden = stages.length === 1;
  draw();
})();
