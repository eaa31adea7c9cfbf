// Tensors by name, each { dtype, shape, values }, and the safetensors files that hold them.

import { readFileSync, writeFileSync } from "node:fs";

import { float8Of, nearestEven } from "./float8.js";
import { bfloat16Of, float16Of, fromBfloat16, fromFloat16 } from "./half.js";

// What a file calls a dtype, its bytes, the array it is computed with, and how one number is read and written.
const DTYPES = {
  float64: {
    code: "F64",
    size: 8,
    Values: Float64Array,
    get: (data, at) => data.getFloat64(at, true),
    set: (data, at, x) => data.setFloat64(at, x, true),
  },
  float32: {
    code: "F32",
    size: 4,
    Values: Float32Array,
    get: (data, at) => data.getFloat32(at, true),
    set: (data, at, x) => data.setFloat32(at, x, true),
  },
  bfloat16: {
    code: "BF16",
    size: 2,
    Values: Float32Array,
    get: (data, at) => fromBfloat16(data.getUint16(at, true)),
    set: (data, at, x) => data.setUint16(at, bfloat16Of(x), true),
  },
  float16: {
    code: "F16",
    size: 2,
    Values: Float32Array,
    get: (data, at) => fromFloat16(data.getUint16(at, true)),
    set: (data, at, x) => data.setUint16(at, float16Of(x), true),
  },
  // These are only written.
  float8_e4m3fn: { code: "F8_E4M3", size: 1, set: (data, at, x) => data.setUint8(at, float8Of(x, 3)) },
  float8_e5m2: { code: "F8_E5M2", size: 1, set: (data, at, x) => data.setUint8(at, float8Of(x, 2)) },
  int8: { code: "I8", size: 1, set: (data, at, x) => data.setInt8(at, nearestEven(x)) },
};
const DTYPE_OF = Object.fromEntries(Object.entries(DTYPES).map(([name, { code }]) => [code, name]));

export const count = (shape) => shape.reduce((a, b) => a * b, 1);

// 8 bytes of header length, that many of JSON, and the data.
export function readTensors(path) {
  const file = readFileSync(path);
  const length = file.length < 8 ? Infinity : Number(file.readBigUInt64LE(0));
  if (length > file.length - 8) throw new Error(`${path}: not a safetensors file: its header ends beyond it`);
  const header = JSON.parse(file.toString("utf8", 8, 8 + length));
  const data = file.subarray(8 + length);
  const tensors = {};
  for (const [name, entry] of Object.entries(header)) {
    if (name !== "__metadata__") tensors[name] = readTensor(`${path}: tensor ${name}`, entry, data);
  }
  return tensors;
}

function readTensor(what, { dtype: code, shape, data_offsets: [begin, end] }, data) {
  const dtype = DTYPE_OF[code];
  if (!dtype) throw new Error(`${what} is ${code}; known are ${Object.keys(DTYPE_OF).join(", ")}`);
  const { size, Values, get } = DTYPES[dtype];
  if (begin < 0 || end > data.length || end - begin !== count(shape) * size) {
    throw new Error(`${what}: its data_offsets fit neither its shape nor the file`);
  }
  const view = new DataView(data.buffer, data.byteOffset + begin, end - begin);
  const values = new Values(count(shape));
  for (let i = 0; i < values.length; i++) values[i] = get(view, i * size);
  return { dtype, shape, values };
}

export function writeTensors(path, tensors) {
  const header = {};
  let length = 0;
  for (const [name, { dtype, shape }] of Object.entries(tensors)) {
    const begin = length;
    length += count(shape) * DTYPES[dtype].size;
    header[name] = { dtype: DTYPES[dtype].code, shape, data_offsets: [begin, length] };
  }
  let text = Buffer.from(JSON.stringify(header));
  text = Buffer.concat([text, Buffer.alloc(-text.length & 7, " ")]); // so that the data are aligned
  const file = Buffer.alloc(8 + text.length + length);
  file.writeBigUInt64LE(BigInt(text.length), 0);
  text.copy(file, 8);
  const data = new DataView(file.buffer, file.byteOffset + 8 + text.length, length);
  for (const [name, { dtype, values }] of Object.entries(tensors)) {
    const { size, set } = DTYPES[dtype];
    const begin = header[name].data_offsets[0];
    for (let i = 0; i < values.length; i++) set(data, begin + i * size, values[i]);
  }
  writeFileSync(path, file);
}
