// A browser for the tests: one JSON command a line on stdin, one JSON answer a line on stdout. driver.py is the other end.
"use strict";

const { createInterface } = require("node:readline");
const { join } = require("node:path");
const { chromium } = require("playwright-core");

const INJECTED = [join(__dirname, "node_modules", "mqtt", "dist", "mqtt.min.js"), join(__dirname, "page.js")];
const ARGUMENTS = ["--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"];

let browser;
const pages = new Map();

// What DevTools tells of a page's WebSocket connections, in the order of their beginning.
async function watchSockets(page) {
  const sockets = new Map();
  const session = await page.context().newCDPSession(page);
  session.on("Network.webSocketCreated", ({ requestId, url }) => {
    sockets.set(requestId, { url, request: {}, status: 0, response: {}, errors: [], closed: false });
  });
  session.on("Network.webSocketWillSendHandshakeRequest", ({ requestId, request }) => {
    sockets.get(requestId).request = request.headers;
  });
  session.on("Network.webSocketHandshakeResponseReceived", ({ requestId, response }) => {
    Object.assign(sockets.get(requestId), { status: response.status, response: response.headers });
  });
  session.on("Network.webSocketFrameError", ({ requestId, errorMessage }) => {
    sockets.get(requestId).errors.push(errorMessage);
  });
  session.on("Network.webSocketClosed", ({ requestId }) => {
    sockets.get(requestId).closed = true;
  });
  await session.send("Network.enable");
  return sockets;
}

const commands = {
  async launch({ executable, args }) {
    browser = await chromium.launch({ executablePath: executable, headless: true, args: [...ARGUMENTS, ...args] });
  },
  // A page in a context of its own, which shares no connection with another. `inject`: with MQTT.js, past the page's own policy.
  async open({ page: number, url, inject, timeout }) {
    const context = await browser.newContext({ bypassCSP: inject });
    context.setDefaultTimeout(timeout);
    const page = await context.newPage();
    const said = [];
    page.on("console", (message) => said.push(message.text()));
    page.on("pageerror", (error) => said.push(String(error)));
    pages.set(number, { page, said, sockets: await watchSockets(page) });
    const response = await page.goto(url);
    for (const path of inject ? INJECTED : []) {
      await page.addScriptTag({ path });
    }
    return response.status();
  },
  evaluate({ page: number, expression }) {
    return pages.get(number).page.evaluate(expression);
  },
  report({ page: number }) {
    const { said, sockets } = pages.get(number);
    return { said, sockets: [...sockets.values()] };
  },
  async shut({ page: number }) {
    const { page } = pages.get(number);
    pages.delete(number);
    await page.context().close();
  },
};

const input = createInterface({ input: process.stdin });
input.on("line", async (line) => {
  const { number, verb, ...rest } = JSON.parse(line);
  const answer = { number, error: null, result: null };
  try {
    answer.result = (await commands[verb](rest)) ?? null;
  } catch (error) {
    answer.error = String(error);
  }
  process.stdout.write(JSON.stringify(answer) + "\n");
});
input.on("close", async () => {
  await browser?.close();
  process.exit(0);
});
