// An episode's cameras, all at one step: videos are sought, images are loaded, curves have a cursor.
const AHEAD = 24; // images that are loaded before they are needed
const TOLERANCE = 0.6; // frames by which a playing video may be off before it is sought again

const element = (tag, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
};

class VideoCamera {
  constructor(camera, fps, length) {
    Object.assign(this, {camera, fps, length, isReady: false});
    this.video = element("video", {muted: true, playsInline: true, preload: "auto"});
    this.figure = element("figure", {}, this.video, element("figcaption", {textContent: camera.name}));
    this.failed = new Promise((resolve) => {
      this.video.addEventListener("error", () => resolve("the browser cannot play it"));
      this.video.addEventListener("loadedmetadata", () => {
        this.isReady = true;
        const end = camera.from + (length - 0.5) / fps;
        if (this.video.duration < end) resolve(`it ends at ${this.video.duration.toFixed(2)} s`);
        else this.seek(this.wanted ?? 0);
      });
    });
    this.video.src = camera.video;
  }
  time(step) { return this.camera.from + (step + 0.5) / this.fps; } // the frame's middle: rounding cannot miss it
  get step() { return Math.floor((this.video.currentTime - this.camera.from) * this.fps); }
  async seek(step) {
    this.wanted = step;
    if (!this.isReady) return;
    const time = this.time(step);
    if (Math.abs(this.video.currentTime - time) < 1e-4 && !this.video.seeking) return;
    this.video.currentTime = time; // what is told next may still be the end of an earlier search
    while (this.video.seeking)
      await new Promise((resolve) => this.video.addEventListener("seeked", resolve, {once: true}));
  }
  play(speed) { this.video.playbackRate = speed; return this.video.play().catch(() => {}); }
  pause() { this.video.pause(); }
  follow(step) { if (Math.abs(this.step - step) > TOLERANCE) this.video.currentTime = this.time(step); }
  close() { this.video.pause(); this.video.removeAttribute("src"); this.video.load(); }
}

class ImageCamera {
  constructor(camera, length, note = "") {
    Object.assign(this, {camera, length, loaded: new Map()});
    this.image = element("img", {alt: "", width: camera.width, height: camera.height});
    this.caption = element("figcaption", {textContent: camera.name + note});
    this.figure = element("figure", {}, this.image, this.caption);
  }
  load(step) {
    if (!this.loaded.has(step)) {
      const image = new Image();
      image.src = this.camera.frames + step;
      this.loaded.set(step, image.decode().then(() => image.src));
      this.loaded.get(step).catch(() => {});
      if (this.loaded.size > 8 * AHEAD) this.loaded.delete(this.loaded.keys().next().value);
    }
    return this.loaded.get(step);
  }
  async seek(step) {
    this.wanted = step;
    try {
      const source = await this.load(step);
      if (this.wanted !== step) return;
      this.image.src = source;
      await this.image.decode(); // until then the image before is shown, for long if this one is fetched again
    } catch {
      if (this.wanted === step) await this.fail(step); // else another one was asked for meanwhile
    }
    for (let i = 1; i <= AHEAD && step + i < this.length; i++) this.load(step + i);
  }
  async fail(step) {
    const answer = await fetch(this.camera.frames + step);
    const why = answer.ok ? "its image is damaged" : (await answer.json()).error;
    if (this.isClosed) return;
    this.figure.replaceChildren(
      element("p", {className: "fault", textContent: `This camera cannot be shown: ${why}`}), this.caption);
  }
  play() {}
  pause() {}
  follow(step) { if (this.wanted !== step) this.seek(step); }
  close() { this.isClosed = true; this.loaded.clear(); }
}

export class Player {
  constructor(parts, moved) {
    Object.assign(this, parts, {moved, step: 0, length: 1, views: [], isPlaying: false, charts_: []});
  }
  open(episode) {
    this.pause();
    for (const view of this.views) view.close();
    Object.assign(this, {length: episode.length, fps: episode.fps, step: 0});
    this.scrubber.max = episode.length - 1;
    this.views = episode.cameras.map((camera) => this.view(camera));
    this.cameras.replaceChildren(...this.views.map((view) => view.figure));
    this.setCharts([]);
    this.go(0);
  }
  view(camera) {
    if (!camera.video) return new ImageCamera(camera, this.length);
    const view = new VideoCamera(camera, this.fps, this.length);
    view.failed.then((why) => this.showImages(view, why));
    return view;
  }
  showImages(view, why) { // the program decodes what a browser has no codec for, and says what is damaged
    const place = this.views.indexOf(view);
    if (place < 0) return;
    const images = new ImageCamera(view.camera, this.length, `: single images, as ${why}`);
    this.views[place] = images;
    view.figure.replaceWith(images.figure);
    images.seek(this.step);
  }
  go(step) {
    this.step = Math.max(0, Math.min(this.length - 1, Math.round(step)));
    this.settled = Promise.all(this.views.map((view) => view.seek(this.step)));
    this.draw();
  }
  draw() {
    this.scrubber.value = this.step;
    this.position.textContent =
      `step ${this.step} of 0 to ${this.length - 1} (${(this.step / this.fps).toFixed(2)} s)`;
    for (const {line, chart} of this.charts_) {
      const part = this.length > 1 ? this.step / (this.length - 1) : 0.5;
      const x = chart.first + part * (chart.last - chart.first);
      line.setAttribute("d", `M${x.toFixed(2)} 0V1000`);
    }
    this.moved(this.step);
  }
  setCharts(charts) {
    this.charts_ = [];
    this.charts.replaceChildren(...charts.map((chart) => {
      const card = element("div", {className: `card ${chart.kind}`}, element("h3", {textContent: chart.title}));
      card.insertAdjacentHTML("beforeend", chart.svg + chart.legend); // drawn by the program, escaped there
      const svg = card.querySelector("svg");
      const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
      line.setAttribute("class", "cursor");
      svg.append(line);
      svg.setAttribute("overflow", "hidden");
      svg.addEventListener("click", (event) => {
        const box = svg.getBoundingClientRect();
        const view = svg.viewBox.baseVal;
        const scale = Math.min(box.width / view.width, box.height / view.height);
        const x = (event.clientX - box.left - (box.width - scale * view.width) / 2) / scale;
        this.pause();
        this.go((this.length - 1) * (x - chart.first) / Math.max(chart.last - chart.first, 1e-9));
      });
      this.charts_.push({line, chart});
      return card;
    }));
    this.draw();
  }
  toggle() { this.isPlaying ? this.pause() : this.play(); }
  play() {
    if (this.step >= this.length - 1) this.go(0);
    this.isPlaying = true;
    this.playButton.textContent = "Pause";
    const speed = Number(this.speed.value);
    for (const view of this.views) view.play(speed);
    const [begun, from] = [performance.now(), this.step];
    const tick = (now) => {
      if (!this.isPlaying) return;
      const leader = this.views.find((view) => view instanceof VideoCamera);
      const step = leader ? leader.step : from + Math.floor((now - begun) / 1000 * this.fps * speed);
      if (step >= this.length - 1) {
        this.pause();
        this.go(this.length - 1);
        return;
      }
      if (step > this.step) {
        this.step = step;
        for (const view of this.views) if (view !== leader) view.follow(step);
        this.draw();
      }
      requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
  }
  pause() {
    if (!this.isPlaying) return;
    this.isPlaying = false;
    this.playButton.textContent = "Play";
    for (const view of this.views) view.pause();
    this.go(this.step);
  }
}

export {element};
