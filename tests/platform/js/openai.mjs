// What the official OpenAI client for JavaScript does with the HTTP server; prints what came back as one JSON object.
import OpenAI from "openai";

const [baseURL, apiKey, picture] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const model = (await client.models.list()).data[0].id;
const content = [
  { type: "image_url", image_url: { url: picture, detail: "low" } },
  { type: "text", text: "What is in the picture?" },
];
const asked = { model, messages: [{ role: "user", content }], temperature: 0 };

const plain = await client.chat.completions.create(asked);

const pieces = [];
let usage = null;
const stream = await client.chat.completions.create({ ...asked, stream: true, stream_options: { include_usage: true } });
for await (const chunk of stream) {
  if (chunk.choices.length) pieces.push(chunk.choices[0]);
  usage = chunk.usage ?? usage;
}

const helper = await client.chat.completions.stream(asked).finalContent();

const errors = {};
for (const [name, change] of Object.entries({
  model: { model: "gpt-4" },
  param: { max_tokens: 0 },
  functions: { functions: [{ name: "f", parameters: {} }] },
})) {
  const error = await client.chat.completions.create({ ...asked, ...change }).catch((error) => error);
  errors[name] = { kind: error.constructor.name, status: error.status, code: error.code, param: error.param };
}
const stranger = new OpenAI({ baseURL, apiKey: "wrong", maxRetries: 0 });
errors.key = { kind: (await stranger.models.list().catch((error) => error)).constructor.name };

const leaving = await client.chat.completions.create({
  model, messages: [{ role: "user", content: "Hello!" }], stream: true, ignore_eos: true, max_tokens: 3500,
});
let heard = 0;
for await (const _ of leaving) if (++heard === 2) leaving.controller.abort();

const aborted = new AbortController();
setTimeout(() => aborted.abort(), 100);
const cut = await client.chat.completions
  .create({ ...asked, ignore_eos: true, max_tokens: 3500 }, { signal: aborted.signal })
  .catch((error) => error);
console.log(JSON.stringify({ plain, pieces, usage, helper, errors, heard, cut: cut.constructor.name }));
