// Client libraries for JavaScript against a running server: see ../test_clients.py.
//
// clients.mjs NAME BASE_URL PICTURE NUMBER prints what came back as JSON.
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, stepCountIs, streamText, tool } from "ai";
import OpenAI from "openai";
import { zodFunction, zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const MODEL = "tiny-qwen3-vl";
const QUESTION = "What is in the picture?";
const ZOOM = "Zoom in and read the number.";
const Thing = z.object({
  shape: z.enum(["circle", "square", "triangle", "star", "cross", "ring"]),
  color: z.enum(["red", "orange", "yellow", "green", "blue", "purple", "black", "white"]),
});
const Box = z.object({ box: z.array(z.number().int()) });

const [name, baseURL, picture, number] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "k1", maxRetries: 0 });
const compatible = createOpenAICompatible({
  name: "worker",
  baseURL,
  apiKey: "k1",
  supportsStructuredOutputs: true,
});

const openai = createOpenAI({ baseURL, apiKey: "k1" });  // its default is Responses
const anthropic = createAnthropic({ baseURL, apiKey: "k1" });

const messages = (question, url) => [
  { role: "user", content: [{ type: "image_url", image_url: { url } }, { type: "text", text: question }] },
];
const parts = (question, url) => [
  { role: "user", content: [{ type: "image", image: url }, { type: "text", text: question }] },
];

// A tool is called and its result answered, in two steps.
const withTool = async (generate, provider) => {
  let box = null;
  const result = await generate({
    model: provider(MODEL),
    messages: parts(ZOOM, number),
    temperature: 0,
    maxRetries: 0,
    stopWhen: stepCountIs(2),
    tools: {
      zoom: tool({
        description: "Look at a part of the picture.",
        inputSchema: Box,
        execute: async (given) => {
          box = given.box;
          return "The number 42.";
        },
      }),
    },
  });
  const answer = await result.text;
  return { box, answer };
};

const clients = {
  async "openai parse"() {
    const completion = await client.chat.completions.parse({
      model: MODEL,
      messages: messages(QUESTION, picture),
      response_format: zodResponseFormat(Thing, "thing"),
      temperature: 0,
    });
    return completion.choices[0].message.parsed;
  },
  async "openai runTools"() {
    let box = null;
    const runner = client.chat.completions.runTools({
      model: MODEL,
      messages: messages(ZOOM, number),
      temperature: 0,
      tools: [
        zodFunction({
          name: "zoom",
          description: "Look at a part of the picture.",
          parameters: Box,
          function: (given) => {
            box = given.box;
            return "The number 42.";
          },
        }),
      ],
    });
    const answer = await runner.finalContent();
    return { box, answer };
  },
  async "AI SDK generateObject"() {
    const { object } = await generateObject({
      model: compatible(MODEL),
      schema: Thing,
      messages: parts(QUESTION, picture),
      temperature: 0,
      maxRetries: 0,
    });
    return object;
  },
  async "AI SDK tools"() {
    return await withTool(generateText, compatible);
  },
  async "AI SDK responses generateObject"() {
    const { object } = await generateObject({
      model: openai(MODEL),
      schema: Thing,
      messages: parts(QUESTION, picture),
      temperature: 0,
      maxRetries: 0,
    });
    return object;
  },
  async "AI SDK responses tools"() {
    return await withTool(generateText, openai);
  },
  async "AI SDK responses tools, streamed"() {
    return await withTool(streamText, openai);
  },
  async "AI SDK anthropic tools, streamed"() {
    return await withTool(streamText, anthropic);
  },
};

console.log(JSON.stringify(await clients[name]()));
