// Edits one after the other, each of the version of the episode that was looked at; what this tab did can be undone.
const store = (name, value) => {
  if (value !== undefined) sessionStorage.setItem(name, JSON.stringify(value));
  return JSON.parse(sessionStorage.getItem(name) ?? "null");
};

export class Edits {
  // say: shows a message. changed: is given the episode as it is now.
  constructor(say, changed) {
    Object.assign(this, {say, changed, last: Promise.resolve(), waiting: 0});
    this.by = store("by") ?? store("by", Math.random().toString(36).slice(2, 10));
  }
  // key: of the data; in another page's data the same numbers are other episodes.
  begin(key) {
    this.key = key;
    this.done = this.kept("done") ?? []; // numbers of episodes, one an edit of this tab
    this.undone = this.kept("undone") ?? [];
    this.versions = new Map(this.kept("versions") ?? []); // of episodes, after what this tab last did or saw there
  }
  kept(name, value) { return store(`${name} of ${this.key}`, value); }
  // ours: as an answer to this tab. Else a version that this tab does not know is somebody else's edit.
  seen(episode, ours = false) {
    const known = this.versions.get(episode.number);
    if (!ours && !this.waiting && known !== undefined && known !== episode.version) this.forget(episode.number);
    this.versions.set(episode.number, episode.version);
    this.keep();
  }
  edit(number, edit) {
    return this.queued(async () => {
      if (await this.send(number, "edit", edit)) {
        this.done.push(number);
        this.undone = [];
      }
    });
  }
  // The last edit of this tab, wherever it was; without one, the last edit of the episode that is shown.
  undo(shown) { return this.queued(() => this.back("undo", this.done, this.undone, shown)); }
  redo(shown) { return this.queued(() => this.back("redo", this.undone, this.done, shown)); }
  async back(what, from, to, shown) {
    const number = from.at(-1) ?? shown;
    if (await this.send(number, what, {})) {
      from.pop();
      to.push(number);
    }
  }
  queued(work) {
    this.waiting += 1;
    this.last = this.last.then(work).catch((error) => this.say(String(error))).finally(() => {
      this.waiting -= 1;
      this.keep();
    });
    return this.last;
  }
  keep() { // over a reload
    for (const name of ["done", "undone"]) this.kept(name, this[name].slice(-500));
    this.kept("versions", [...this.versions].slice(-500));
  }
  async send(number, what, edit) {
    let answer;
    try {
      answer = await fetch(`/api/episode/${number}/${what}`, {
        method: "POST",
        headers: {"content-type": "application/json"},
        body: JSON.stringify({version: this.versions.get(number) ?? 0, by: this.by, ...edit}),
      });
    } catch {
      this.say("Not saved: chunkrl does not answer. What was saved before is kept; start it again, and reload this page.");
      return false;
    }
    const found = await answer.json();
    const episode = answer.ok ? found : found.episode;
    if (!answer.ok) this.say(found.error);
    if (answer.status === 409) this.forget(number);
    if (episode) {
      this.seen(episode, true);
      this.changed(episode, answer.ok ? what : "told");
    }
    return answer.ok;
  }
  forget(number) { // somebody else's edit is on top: what this tab did there before is no longer its to undo
    this.done = this.done.filter((other) => other !== number);
    this.undone = this.undone.filter((other) => other !== number);
  }
}
