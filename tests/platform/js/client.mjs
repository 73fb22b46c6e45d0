// Every call of the platform's JavaScript client once; prints what came back as one JSON object.
import runpodSdk from "runpod-sdk";

const [baseUrl] = process.argv.slice(2);
const endpoint = runpodSdk("rpa_test", { baseUrl }).endpoint("ep");
const question = { input: { prompt: "Who are you?" } };
const long = { input: { prompt: "Who are you?", ignore_eos: true, max_tokens: 3500 } };

const sync = await endpoint.runSync(question);
const queued = await endpoint.run(question);
let status;
do {
  status = await endpoint.statusSync(queued.id);
} while (!status.completed && status.status !== "COMPLETED");

const streamed = await endpoint.run({ input: { ...question.input, stream: true } });
const pieces = [];
for await (const piece of endpoint.stream(streamed.id)) pieces.push(piece.output);

const unwanted = await endpoint.run(long);
await endpoint.cancel(unwanted.id);
const cancelled = await endpoint.status(unwanted.id);
const failed = await endpoint.runSync({ input: { prompt: 5 } });
console.log(JSON.stringify({ sync, status, pieces, cancelled, failed, health: await endpoint.health() }));
