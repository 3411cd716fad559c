// Pointer, wheel, two fingers and keys, as what they do to a map.

const STEP = 60;
const CLICK = 4;

/** Steer by an element: `pan(x, y)` in pixels, `zoom(factor, x, y)`, `reset()`, `over(point)`, `away()`, `tap(point)`, `enter()`. */
export function steer(element, { pan, zoom, reset, over, away, tap, enter }) {
  const touching = new Map();
  let walked = 0;
  const spot = (event) => {
    const box = element.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  element.addEventListener("wheel", (event) => (event.preventDefault(), zoom(Math.exp(-event.deltaY * 0.0016), ...spot(event))), { passive: false });
  element.addEventListener("pointerdown", (event) => {
    element.setPointerCapture(event.pointerId);
    touching.set(event.pointerId, spot(event));
    walked = 0;
  });
  element.addEventListener("pointermove", (event) => {
    const now = spot(event);
    const before = touching.get(event.pointerId);
    if (!before) return over(now);
    const step = [now[0] - before[0], now[1] - before[1]];
    const other = [...touching].find(([id]) => id !== event.pointerId)?.[1];
    touching.set(event.pointerId, now);
    walked += Math.hypot(...step);
    if (!other) return walked > CLICK && pan(...step);
    const apart = (point) => Math.max(Math.hypot(point[0] - other[0], point[1] - other[1]), 1);
    return zoom(apart(now) / apart(before), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
  });
  const lift = (event) => touching.delete(event.pointerId);
  element.addEventListener("pointerup", (event) => {
    lift(event);
    if (walked <= CLICK) tap(spot(event));
  });
  element.addEventListener("pointercancel", lift);
  element.addEventListener("pointerleave", away);
  element.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [STEP, 0], ArrowRight: [-STEP, 0], ArrowUp: [0, STEP], ArrowDown: [0, -STEP] };
    if (moves[event.key]) pan(...moves[event.key]);
    else if (event.key === "+" || event.key === "=") zoom(1.4);
    else if (event.key === "-") zoom(1 / 1.4);
    else if (event.key === "0") reset();
    else if (event.key === "Enter") enter();
    else return;
    event.preventDefault();
  });
}
