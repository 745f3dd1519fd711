// MQTT.js for the tests: one JSON command a line on stdin, one JSON answer or event a line on stdout. mqttjs.py is the other end.
"use strict";

const { createInterface } = require("node:readline");
const mqtt = require("mqtt");

const clients = new Map();

function tell(object) {
  process.stdout.write(JSON.stringify(object) + "\n");
}

function bytes(text) {
  return Buffer.from(text, "base64");
}

function publishOptions(message) {
  const options = { qos: message.qos, retain: message.retain };
  if (message.properties) {
    options.properties = { ...message.properties };
    if (options.properties.correlationData !== undefined) {
      options.properties.correlationData = bytes(options.properties.correlationData);
    }
  }
  return options;
}

function told(name, topic, payload, packet) {
  const properties = { ...packet.properties };
  if (properties.correlationData !== undefined) {
    properties.correlationData = properties.correlationData.toString("base64");
  }
  tell({ client: name, topic, payload: payload.toString("base64"), qos: packet.qos, retain: packet.retain, properties });
}

const commands = {
  open({ client: name, url, options, subscriptions }, done) {
    if (options.will) {
      options.will.payload = bytes(options.will.payload);
    }
    const client = mqtt.connect(url, { ...options, reconnectPeriod: 0 });
    clients.set(name, client);
    client.on("message", (topic, payload, packet) => told(name, topic, payload, packet));
    client.on("error", done);
    client.on("connect", (connack) => {
      const opened = { sessionPresent: Boolean(connack.sessionPresent) };
      if (Object.keys(subscriptions).length === 0) {
        done(null, opened);
        return;
      }
      client.subscribe(subscriptions, (error, granted) => {
        const refused = !error && granted.some((one) => one.qos >= 128);
        done(refused ? new Error("subscription refused") : error, opened);
      });
    });
  },
  publish({ client: name, message }, done) {
    clients.get(name).publish(message.topic, bytes(message.payload), publishOptions(message), (error) => done(error));
  },
  close({ client: name }, done) {
    clients.get(name).end(false, {}, () => done());
    clients.delete(name);
  },
  abort({ client: name }, done) {
    const client = clients.get(name);
    clients.delete(name);
    client.once("close", () => client.end(true, {}, () => done()));
    client.stream.destroy();
  },
};

const input = createInterface({ input: process.stdin });
input.on("line", (line) => {
  const command = JSON.parse(line);
  let answered = false;
  commands[command.verb](command, (error, answer) => {
    if (!answered) {
      answered = true;
      tell({ command: command.number, error: error ? String(error) : null, ...answer });
    }
  });
});
input.on("close", () => process.exit(0));
