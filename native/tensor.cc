#include "tensor.h"

#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <unordered_set>

#include "args.h"

namespace grove {

SlotTable<at::Tensor>& tensors() {
  static auto* table = new SlotTable<at::Tensor>("tensor");
  return *table;
}

alignas(64) double ioBuffer[kIoLength] = {};

c10::Device deviceFromCode(int64_t code) {
  if (code == 0) return c10::Device(c10::kCPU);
  if (code == 1) return c10::Device(c10::kCUDA);
  if (code >= 2 && code < 130) return c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(code - 2));
  throw EngineError("ARG_KIND", "unknown device code " + std::to_string(code));
}

double codeFromDevice(c10::Device device) {
  if (device.is_cpu()) return 0;
  return device.has_index() ? 2 + device.index() : 1;
}

at::ScalarType scalarTypeFromCode(int64_t code) {
  switch (code) {
    case 0: return at::kByte;
    case 2: return at::kShort;
    case 3: return at::kInt;
    case 4: return at::kLong;
    case 5: return at::kHalf;
    case 6: return at::kFloat;
    case 7: return at::kDouble;
    case 11: return at::kBool;
    case 15: return at::kBFloat16;
    default: throw EngineError("ARG_KIND", "unknown dtype code " + std::to_string(code));
  }
}

namespace {

// Sizes of a new tensor, from the first `ndim` numbers of the exchange buffer.
std::vector<int64_t> sizesFromIo(int64_t ndim) {
  if (ndim < 0 || ndim > 64) throw EngineError("ARG_KIND", "a tensor has 0 to 64 dimensions, got " + std::to_string(ndim));
  std::vector<int64_t> sizes(static_cast<size_t>(ndim));
  for (int64_t i = 0; i < ndim; i++) {
    double size = io()[i];
    if (!(size >= 0 && size <= 9007199254740992.0 && size == static_cast<double>(static_cast<int64_t>(size)))) {
      throw EngineError("ARG_KIND", "sizes must be integers of at least 0");
    }
    sizes[static_cast<size_t>(i)] = static_cast<int64_t>(size);
  }
  return sizes;
}

// Bytes of a tensor of these sizes; refuses products that overflow.
int64_t bytesOf(const std::vector<int64_t>& sizes, at::ScalarType dtype) {
  int64_t bytes = static_cast<int64_t>(c10::elementSize(dtype));
  for (int64_t size : sizes) {
    if (__builtin_mul_overflow(bytes, size, &bytes)) throw EngineError("ARG_KIND", "the tensor's size overflows 64 bits");
  }
  return bytes;
}

struct Mapping {
  explicit Mapping(const std::string& path) {
    fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) throw EngineError("OP", path + ": " + std::strerror(errno));
    struct stat info;
    if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
      close(fd);
      throw EngineError("OP", path + ": not a regular file");
    }
    bytes = static_cast<size_t>(info.st_size);
    // Private and writable: an in-place op on such a tensor changes our copy of the page, never the file.
    void* mapped = bytes == 0 ? nullptr : mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, fd, 0);
    if (mapped == MAP_FAILED) {
      int failure = errno;
      close(fd);
      throw EngineError("OP", path + ": mmap: " + std::strerror(failure));
    }
    data = static_cast<char*>(mapped);
  }
  ~Mapping() {
    if (data != nullptr) munmap(data, bytes);
    close(fd);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  int fd = -1;  // stays open: mapRead reads through it
  char* data = nullptr;
  size_t bytes = 0;
};

SlotTable<std::shared_ptr<Mapping>>& mappings() {
  static auto* table = new SlotTable<std::shared_ptr<Mapping>>("mapped file");
  return *table;
}

}  // namespace

OpenFile openFileOf(double handle) {
  const Mapping& mapping = *mappings().at(handle);
  return {mapping.fd, mapping.bytes};
}

// exchangeBuffer(): ArrayBuffer over io().
napi_value exchangeBuffer(napi_env env, napi_callback_info) {
  napi_value buffer;
  check(napi_create_external_arraybuffer(env, io(), kIoLength * sizeof(double), nullptr, nullptr, &buffer),
        "napi_create_external_arraybuffer");
  return buffer;
}

// tensorMeta(handle): io = [dtype, device, requiresGrad, ndim, ...sizes].
napi_value tensorMeta(napi_env env, napi_callback_info info) {
  Args args(env, info, 1);
  const at::Tensor& tensor = tensors().at(args.number(0));
  double* out = io();
  out[0] = static_cast<double>(tensor.scalar_type());
  out[1] = codeFromDevice(tensor.device());
  out[2] = tensor.requires_grad() ? 1 : 0;
  out[3] = static_cast<double>(tensor.dim());
  for (int64_t i = 0; i < tensor.dim(); i++) out[4 + i] = static_cast<double>(tensor.size(i));
  return nullptr;
}

// tensorFree(count): frees the handles io[0..count); those freed already are passed over.
napi_value tensorFree(napi_env env, napi_callback_info info) {
  Args args(env, info, 1);
  int64_t count = args.integer(0);
  if (count < 0 || count > static_cast<int64_t>(kIoLength)) throw EngineError("ARG_KIND", "too many handles in one call");
  for (int64_t i = 0; i < count; i++) tensors().remove(io()[i]);
  return nullptr;
}

// tensorIsLive(handle): boolean.
napi_value tensorIsLive(napi_env env, napi_callback_info info) {
  Args args(env, info, 1);
  return makeBoolean(env, tensors().isLive(args.number(0)));
}

// tensorItem(handle): the one element as a number. Waits for the device.
napi_value tensorItem(napi_env env, napi_callback_info info) {
  Args args(env, info, 1);
  return makeNumber(env, tensors().at(args.number(0)).item().toDouble());
}

// tensorRead(handle, typedArray, dtype): copies all elements, row-major, as `dtype`. Waits for the device.
napi_value tensorRead(napi_env env, napi_callback_info info) {
  Args args(env, info, 3);
  const at::Tensor& tensor = tensors().at(args.number(0));
  at::ScalarType dtype = scalarTypeFromCode(args.integer(2));
  size_t bytes = 0;
  void* target = args.typedArray(1, &bytes);
  at::Tensor host = tensor.detach().to(c10::Device(c10::kCPU)).to(dtype).contiguous();
  if (host.nbytes() != bytes) {
    throw EngineError("ARG_KIND", "the array holds " + std::to_string(bytes) + " bytes, the tensor " + std::to_string(host.nbytes()));
  }
  if (bytes > 0) std::memcpy(target, host.const_data_ptr(), bytes);
  return nullptr;
}

constexpr int64_t kStagedBytes = 1 << 20;
constexpr int64_t kStagingThreads = 4;

// tensorFromArray(typedArray, sourceDtype, ndim, dtype, device, pinned): handle of a new tensor; sizes in io. `pinned`: a host tensor in page-locked memory.
// Arrays go to a device through page-locked memory, so that the caller waits neither for the copy nor for what the device does before it; the memory is
// cached for the next upload. Large ones are copied there by several threads and converted on the device.
napi_value tensorFromArray(napi_env env, napi_callback_info info) {
  Args args(env, info, 6);
  at::ScalarType source = scalarTypeFromCode(args.integer(1));
  std::vector<int64_t> sizes = sizesFromIo(args.integer(2));
  at::ScalarType dtype = scalarTypeFromCode(args.integer(3));
  c10::Device device = deviceFromCode(args.integer(4));
  const bool pinned = args.boolean(5) || device.is_cuda();
  size_t bytes = 0;
  void* data = args.typedArray(0, &bytes);
  if (bytesOf(sizes, source) != static_cast<int64_t>(bytes)) {
    throw EngineError("ARG_KIND", "the array does not hold as many elements as the shape");
  }
  if (device.is_cuda() && static_cast<int64_t>(bytes) >= kStagedBytes) {
    at::Tensor staged = at::empty(sizes, at::TensorOptions().dtype(source).pinned_memory(true));
    auto* to = static_cast<char*>(staged.mutable_data_ptr());
    const auto* from = static_cast<const char*>(data);
    // few threads: the copy ends when the last one does, and others decode videos on the same cores
    at::parallel_for(0, static_cast<int64_t>(bytes), std::max<int64_t>(kStagedBytes, static_cast<int64_t>(bytes) / kStagingThreads),
                     [&](int64_t begin, int64_t end) { std::memcpy(to + begin, from + begin, static_cast<size_t>(end - begin)); });
    return makeNumber(env, tensors().add(staged.to(device, /*non_blocking=*/true).to(dtype)));
  }
  at::Tensor host = at::empty(sizes, at::TensorOptions().dtype(dtype).pinned_memory(pinned));
  if (source != dtype) host.copy_(at::from_blob(data, sizes, at::TensorOptions().dtype(source)));
  else if (bytes > 0) std::memcpy(host.mutable_data_ptr(), data, bytes);
  return makeNumber(env, tensors().add(device.is_cpu() ? host : host.to(device, /*non_blocking=*/true)));
}

// liveTensors(): io = [number of live handles, bytes of the distinct storages behind them].
napi_value liveTensors(napi_env, napi_callback_info) {
  std::unordered_set<const void*> seen;
  double bytes = 0;
  tensors().each([&](const at::Tensor& tensor) {
    if (!tensor.defined() || !tensor.has_storage()) return;
    if (seen.insert(tensor.storage().unsafeGetStorageImpl()).second) bytes += static_cast<double>(tensor.storage().nbytes());
  });
  io()[0] = static_cast<double>(tensors().count());
  io()[1] = bytes;
  return nullptr;
}

// mapOpen(path): handle of a file, open and mapped; io[0] = its length in bytes. Nothing is read before it is touched or asked for.
napi_value mapOpen(napi_env env, napi_callback_info info) {
  Args args(env, info, 1);
  auto mapping = std::make_shared<Mapping>(args.string(0));
  io()[0] = static_cast<double>(mapping->bytes);
  return makeNumber(env, mappings().add(std::move(mapping)));
}

// mapTensor(map, byteOffset, ndim, dtype): handle of a CPU tensor over the file's bytes, which keeps the mapping alive; sizes in io.
napi_value mapTensor(napi_env env, napi_callback_info info) {
  Args args(env, info, 4);
  std::shared_ptr<Mapping> mapping = mappings().at(args.number(0));
  int64_t offset = args.integer(1);
  std::vector<int64_t> sizes = sizesFromIo(args.integer(2));
  at::ScalarType dtype = scalarTypeFromCode(args.integer(3));
  int64_t bytes = bytesOf(sizes, dtype);
  int64_t available = static_cast<int64_t>(mapping->bytes);
  if (offset < 0 || offset > available || bytes > available - offset) {
    throw EngineError("OP", "bytes " + std::to_string(offset) + " to " + std::to_string(offset + bytes) + " lie outside the file of " +
                                std::to_string(available) + " bytes");
  }
  auto options = at::TensorOptions().dtype(dtype);
  if (bytes == 0) return makeNumber(env, tensors().add(at::empty(sizes, options)));
  char* start = mapping->data + offset;
  if (reinterpret_cast<uintptr_t>(start) % c10::elementSize(dtype) != 0) {
    at::Tensor copy = at::empty(sizes, options);  // kernels may assume alignment
    std::memcpy(copy.mutable_data_ptr(), start, static_cast<size_t>(bytes));
    return makeNumber(env, tensors().add(copy));
  }
  return makeNumber(env, tensors().add(at::from_blob(start, sizes, [mapping](void*) {}, options)));
}

// mapClose(map): gives up the handle; the mapping ends with its last tensor.
napi_value mapClose(napi_env env, napi_callback_info info) {
  Args args(env, info, 1);
  mappings().remove(args.number(0));
  return nullptr;
}

}  // namespace grove
