// What runs in the page beside MQTT.js: clients by name. What may take time is a promise with a deadline.
"use strict";

const clients = (() => {
  const DEADLINE_MS = 15000;
  const made = new Map();
  const closes = []; // of all WebSocket connections, as the browser tells the page

  window.WebSocket = class extends WebSocket {
    constructor(...what) {
      super(...what);
      this.addEventListener("close", ({ code, wasClean }) => closes.push({ code, wasClean }));
    }
  };

  function within(what, start) {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error(`${what}: not within ${DEADLINE_MS} ms`)), DEADLINE_MS);
      start(
        (value) => (clearTimeout(timer), resolve(value)),
        (error) => (clearTimeout(timer), reject(error)),
      );
    });
  }

  // What a client is told, of one kind: kept until somebody asks for the next.
  class Told {
    constructor(what) {
      this.what = what;
      this.items = [];
      this.asking = [];
    }
    put(item) {
      if (this.asking.length) {
        this.asking.shift()(item);
      } else {
        this.items.push(item);
      }
    }
    next() {
      return this.items.length ? Promise.resolve(this.items.shift()) : within(this.what, (resolve) => this.asking.push(resolve));
    }
  }

  // Each byte depends on its place, so that pieces in the wrong order are noticed.
  const pattern = (size) => Uint8Array.from({ length: size }, (_, i) => (i * 31 + (i >> 8)) & 255);

  function describe(payload) {
    const wanted = pattern(payload.length);
    return payload.length < 100 ? payload.toString() : { size: payload.length, intact: payload.every((byte, i) => byte === wanted[i]) };
  }

  const finish = (resolve, reject) => (error, result) => (error ? reject(error) : resolve(result));

  return {
    closes: () => closes,
    connect({ name, url, options }) {
      const client = mqtt.connect(url, { clientId: name, reconnectPeriod: 0, ...options });
      const told = Object.fromEntries(["connect", "message", "error", "close", "disconnect"].map((kind) => [kind, new Told(`${name}: ${kind}`)]));
      made.set(name, { client, told });
      client.on("connect", () => told.connect.put(true));
      client.on("message", (topic, payload, { qos, retain }) => told.message.put({ topic, payload: describe(payload), qos, retain }));
      client.on("error", (error) => told.error.put(String(error)));
      client.on("close", () => told.close.put(true));
      client.on("disconnect", ({ reasonCode }) => told.disconnect.put(reasonCode));
    },
    next: ({ name, kind }) => made.get(name).told[kind].next(),
    unread: ({ name, kind }) => made.get(name).told[kind].items,
    async subscribe({ name, topic, qos }) {
      const granted = await within(`${name}: SUBACK`, (...ends) => made.get(name).client.subscribe(topic, { qos }, finish(...ends)));
      return granted[0].qos;
    },
    async unsubscribe({ name, topic }) {
      await within(`${name}: UNSUBACK`, (...ends) => made.get(name).client.unsubscribe(topic, finish(...ends)));
    },
    // `payload`: text, or the size of a pattern.
    async publish({ name, topic, payload, qos, retain }) {
      const body = typeof payload === "number" ? pattern(payload) : payload;
      await within(`${name}: PUBLISH`, (...ends) => made.get(name).client.publish(topic, body, { qos, retain }, finish(...ends)));
    },
    async end({ name }) {
      await within(`${name}: end`, (...ends) => made.get(name).client.end(false, {}, finish(...ends)));
    },
  };
})();
