// The list of episodes: only the rows that are seen exist, and only their texts are fetched.
import {element} from "./player.js";

const HEIGHT = 52; // of a row, pixels
const BLOCK = 50; // rows of a request

export function pillOf(row) {
  if (row.excluded) return ["open", "excluded"];
  if (row.success === null) return ["open", "no label"];
  return row.success ? ["good", "success"] : ["bad", "failure"];
}

export class Queue {
  constructor(box, spacer, fetchRows, open) {
    Object.assign(this, {box, spacer, fetchRows, open, numbers: [], places: new Map(), known: new Map(), asked: new Set()});
    box.addEventListener("scroll", () => this.draw(), {passive: true});
    addEventListener("resize", () => this.draw());
  }
  set(numbers) {
    this.numbers = numbers;
    this.places = new Map(numbers.map((number, place) => [number, place]));
    this.spacer.style.height = `${numbers.length * HEIGHT}px`;
    this.known.clear();
    this.asked.clear();
    this.draw();
  }
  update(row) {
    this.known.set(row.number, row);
    this.draw();
  }
  select(number) {
    this.selected = number;
    const top = this.places.get(number) * HEIGHT;
    if (top < this.box.scrollTop || top + HEIGHT > this.box.scrollTop + this.box.clientHeight) {
      this.box.scrollTop = top - this.box.clientHeight / 3;
    }
    this.draw();
  }
  beside(number, by) { return this.numbers[(this.places.get(number) ?? -1) + by]; }
  draw() {
    const first = Math.max(0, Math.floor(this.box.scrollTop / HEIGHT) - 4);
    const last = Math.min(this.numbers.length, Math.ceil((this.box.scrollTop + this.box.clientHeight) / HEIGHT) + 4);
    const rows = [];
    for (let place = first; place < last; place++) {
      this.ask(Math.floor(place / BLOCK));
      rows.push(this.row(place));
    }
    this.spacer.replaceChildren(...rows);
  }
  row(place) {
    const number = this.numbers[place];
    const known = this.known.get(number);
    const made = element("button", {type: "button", className: "row", onclick: () => this.open(number)});
    made.style.top = `${place * HEIGHT}px`;
    if (number === this.selected) made.setAttribute("aria-current", "true");
    if (!known) {
      made.append(element("b", {textContent: "…"}));
      return made;
    }
    const [kind, text] = pillOf(known);
    const detail = [
      `${known.length} steps`,
      ...(known.doubt === null ? [] : [`doubt ${known.doubt.toFixed(2)}`]),
      ...(known.by_hand ? ["by hand"] : []),
      known.task,
    ];
    made.append(
      element("b", {textContent: `${known.set} ${known.episode}`}),
      element("span", {className: `pill ${kind}`, textContent: text}),
      element("small", {textContent: detail.join(" · ")}));
    return made;
  }
  async ask(block) {
    if (this.asked.has(block)) return;
    this.asked.add(block);
    const numbers = this.numbers;
    const found = await this.fetchRows(numbers.slice(block * BLOCK, (block + 1) * BLOCK));
    if (numbers !== this.numbers || !found) return;
    for (const row of found) if (!this.known.has(row.number)) this.known.set(row.number, row);
    this.draw();
  }
}
