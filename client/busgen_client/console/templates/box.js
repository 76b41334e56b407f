"use strict";
// The four number fields are the box; mouse and arrow keys only write into them.
const picture = document.getElementById("picture"), drawn = document.getElementById("drawn"), form = document.getElementById("box");
const names = ["x0", "y0", "x1", "y1"];
const columns = picture.viewBox.baseVal.width, rows = picture.viewBox.baseVal.height;
const limits = [columns, rows, columns, rows];
const read = () => names.map((name) => form.elements[name].valueAsNumber);

function show() {
  const [x0, y0, x1, y1] = read().map((value) => value || 0);
  for (const [name, value] of [["x", Math.min(x0, x1)], ["y", Math.min(y0, y1)], ["width", Math.abs(x1 - x0)], ["height", Math.abs(y1 - y0)]]) {
    drawn.setAttribute(name, value);
  }
}

function write(corners) {
  corners.forEach((value, at) => { form.elements[names[at]].value = Math.round(Math.max(0, Math.min(limits[at], value))); });
  show();
}

function place(event) {
  const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(picture.getScreenCTM().inverse());
  return [at.x, at.y];
}

let from = null;
picture.addEventListener("pointerdown", (event) => {
  from = place(event);
  picture.setPointerCapture(event.pointerId);
  picture.focus();
  event.preventDefault();
});
picture.addEventListener("pointermove", (event) => {
  if (!from) return;
  const to = place(event);
  write([Math.min(from[0], to[0]), Math.min(from[1], to[1]), Math.max(from[0], to[0]), Math.max(from[1], to[1])]);
});
for (const end of ["pointerup", "pointercancel"]) picture.addEventListener(end, () => { from = null; });

const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
picture.addEventListener("keydown", (event) => {
  const way = ways[event.key];
  if (!way) return;
  event.preventDefault();
  const step = Math.max(1, Math.round(columns / 100));
  let box = read();
  if (box.some(Number.isNaN)) box = [columns / 4, rows / 4, columns / 2, rows / 2];
  const [x, y] = way.map((sign) => sign * step);
  write(event.shiftKey ? [box[0], box[1], Math.max(box[0] + 1, box[2] + x), Math.max(box[1] + 1, box[3] + y)] : [box[0] + x, box[1] + y, box[2] + x, box[3] + y]);
});
form.addEventListener("input", show);
show();
