#!/usr/bin/env node
// A port in JavaScript: JSON lines on stdin and stdout, tensors in safetensors files. docs/protocol.md is all it knows.

import { createInterface } from "node:readline";

import { OPS } from "./ops.js";
import { readTensors, writeTensors } from "./safetensors.js";

const HELLO = {
  type: "hello",
  protocol: 2,
  name: "javascript",
  ops: Object.keys(OPS),
  dtypes: ["float64", "float32", "bfloat16", "float16"],
  orders: ["cast_then_scale", "scale_then_cast"],
  weight_offsets: [0, 1],
  sums: ["rounded", "unrounded", "float32"],
  ys: ["rounded", "unrounded"],
  groups: true,
  features: ["window", "sink", "softcap", "attention_scale", "rotary_features", "qk_norm_over", "qk_norm_offset", "placement", "norm_bias"],
  gradients: true,
  taps: true,
  device: "cpu",
  versions: { node: process.versions.node },
};

function answer(message) {
  const { type, id, op, asked, gradients, layout, inputs, outputs } = message;
  if (type === "hello") {
    return message.device === "cpu" ? HELLO : { type: "error", message: `no device ${message.device}: this is JavaScript` };
  }
  if (type !== "case") return { type: "error", id, message: `no message of type ${type} is known` };
  if (layout !== "contiguous") return { type: "skip", id, reason: "no layout but contiguous" };
  if (!Object.hasOwn(OPS, op)) return { type: "skip", id, reason: `no op ${op}` };
  const given = readTensors(inputs);
  const made = OPS[op](message, given, gradients.length > 0);
  const wanted = (name) => asked.includes(name) || (message.taps && name.startsWith("tap."));
  writeTensors(outputs, Object.fromEntries(Object.entries(made).filter(([name]) => wanted(name))));
  return { type: "done", id, overwrote: [] }; // what is read is copied
}

for await (const line of createInterface({ input: process.stdin })) {
  let message;
  let reply;
  try {
    message = JSON.parse(line);
    if (message.type === "bye") break;
    reply = answer(message);
  } catch (error) {
    reply = { type: "error", id: message?.id, message: error.message, detail: error.stack };
  }
  process.stdout.write(`${JSON.stringify(reply)}\n`);
}
