// The tokenizers of @huggingface/transformers never start an ONNX session; its import of a runtime only has to resolve.
export * from "onnxruntime-common";
export { default } from "./default.js";
export const listSupportedBackends = () => [];
