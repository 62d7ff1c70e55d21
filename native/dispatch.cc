// How a call travels. JavaScript encodes its arguments into the exchange buffer (tensor.h), by the kinds that resolveOp told it:
//   io = [op, number of arguments, then for each: a tag (0 schema default, 1 None, 2 value) and, after a 2, the value]
// A value is one number for a tensor (handle), int, float, bool (0 or 1), dtype, device or generator; two for a Scalar (0 int,
// 1 float, 2 bool; value); a length and the elements for a list and for a string (ASCII codes). The results come back the same way:
//   io = [one number for a tensor (0 if undefined), int, float or bool; a length and the elements for a list], in order.
// So a call costs one transition into C++ whatever its arguments, and no object is made but the handles.
#include "dispatch.h"

#include <ATen/core/Generator.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

#include <deque>
#include <sstream>
#include <unordered_map>

#include "args.h"
#include "device_marks.h"
#include "generator.h"
#include "tensor.h"

namespace grove {

namespace {

// The numbers are shared with src/torch/dispatch.ts.
enum Kind : int {
  kTensor = 0,
  kScalar = 1,
  kInt = 2,
  kFloat = 3,
  kBool = 4,
  kString = 5,
  kScalarType = 6,
  kDevice = 7,
  kGenerator = 8,
  kTensorList = 9,
  kOptionalTensorList = 10,
  kIntList = 11,
  kFloatList = 12,
  kBoolList = 13,
  kUnsupported = 14,
};

struct Parameter {
  Kind kind;
  bool optional;
  std::optional<c10::IValue> fallback;  // the schema's default
};

struct Result {
  Kind kind;
  int alias;  // index of the argument this result is (in-place ops), -1 for a new value
};

struct Plan {
  explicit Plan(c10::OperatorHandle handle) : op(std::move(handle)) {}
  c10::OperatorHandle op;
  std::vector<Parameter> parameters;
  std::vector<Result> results;
};

// A deque, so that plans stay where they are.
std::deque<Plan>& plans() {
  static auto* list = new std::deque<Plan>();
  return *list;
}

Kind kindOf(const c10::TypePtr& type, bool* optional) {
  switch (type->kind()) {
    case c10::TypeKind::OptionalType:
      *optional = true;
      return kindOf(type->expectRef<c10::OptionalType>().getElementType(), optional);
    case c10::TypeKind::TensorType: return kTensor;
    case c10::TypeKind::NumberType: return kScalar;
    case c10::TypeKind::IntType:
    case c10::TypeKind::SymIntType:
    case c10::TypeKind::MemoryFormatType:
    case c10::TypeKind::LayoutType: return kInt;
    case c10::TypeKind::FloatType:
    case c10::TypeKind::SymFloatType: return kFloat;
    case c10::TypeKind::BoolType:
    case c10::TypeKind::SymBoolType: return kBool;
    case c10::TypeKind::StringType: return kString;
    case c10::TypeKind::ScalarTypeType: return kScalarType;
    case c10::TypeKind::DeviceObjType: return kDevice;
    case c10::TypeKind::GeneratorType: return kGenerator;
    case c10::TypeKind::ListType: {
      bool elementOptional = false;
      Kind element = kindOf(type->expectRef<c10::ListType>().getElementType(), &elementOptional);
      if (element == kTensor) return elementOptional ? kOptionalTensorList : kTensorList;
      if (element == kInt) return kIntList;
      if (element == kFloat) return kFloatList;
      if (element == kBool) return kBoolList;
      return kUnsupported;
    }
    default: return kUnsupported;
  }
}

// Reads the numbers of one call in order, never beyond the buffer.
class Reader {
 public:
  double next() {
    if (at_ >= kIoLength) throw EngineError("ARG_KIND", "the argument list is longer than the exchange buffer");
    return io()[at_++];
  }
  int64_t integer() {
    double value = next();
    // Written so that NaN fails too.
    if (!(value >= -9223372036854774784.0 && value <= 9223372036854774784.0)) notInteger(value);
    auto integer = static_cast<int64_t>(value);
    if (static_cast<double>(integer) != value) notInteger(value);
    return integer;
  }
  size_t length() {
    int64_t value = integer();
    if (value < 0 || value > static_cast<int64_t>(kIoLength)) throw EngineError("ARG_KIND", "a list is too long");
    return static_cast<size_t>(value);
  }

 private:
  [[noreturn]] static void notInteger(double value) {
    throw EngineError("ARG_KIND", "expected an integer, got " + std::to_string(value));
  }
  size_t at_ = 0;
};

c10::IValue readValue(Reader& reader, Kind kind) {
  switch (kind) {
    case kTensor: return tensors().at(reader.next());
    case kScalar: {
      int64_t type = reader.integer();
      if (type == 0) return reader.integer();
      double value = reader.next();
      if (type == 1) return value;
      return value != 0;
    }
    case kInt: return reader.integer();
    case kFloat: return reader.next();
    case kBool: return reader.next() != 0;
    case kScalarType: return static_cast<int64_t>(scalarTypeFromCode(reader.integer()));
    case kDevice: return deviceFromCode(reader.integer());
    case kGenerator: return generators().at(reader.next());
    case kString: {
      std::string text(reader.length(), '\0');
      for (char& unit : text) unit = static_cast<char>(reader.integer());
      return text;
    }
    case kTensorList: {
      c10::List<at::Tensor> list;
      size_t length = reader.length();
      list.reserve(length);
      for (size_t i = 0; i < length; i++) list.push_back(tensors().at(reader.next()));
      return list;
    }
    case kOptionalTensorList: {
      c10::List<std::optional<at::Tensor>> list;
      size_t length = reader.length();
      for (size_t i = 0; i < length; i++) {
        double handle = reader.next();
        list.push_back(handle == 0 ? std::nullopt : std::optional<at::Tensor>(tensors().at(handle)));
      }
      return list;
    }
    case kIntList: {
      c10::List<int64_t> list;
      size_t length = reader.length();
      list.reserve(length);
      for (size_t i = 0; i < length; i++) list.push_back(reader.integer());
      return list;
    }
    case kFloatList: {
      c10::List<double> list;
      size_t length = reader.length();
      for (size_t i = 0; i < length; i++) list.push_back(reader.next());
      return list;
    }
    case kBoolList: {
      c10::List<bool> list;
      size_t length = reader.length();
      for (size_t i = 0; i < length; i++) list.push_back(reader.next() != 0);
      return list;
    }
    case kUnsupported: break;
  }
  throw EngineError("ARG_KIND", "the schema has a kind of argument that JavaScript cannot pass");
}

class Writer {
 public:
  void put(double value) {
    if (at_ >= kIoLength) throw EngineError("OP", "the results do not fit into the exchange buffer");
    io()[at_++] = value;
  }
  void put(const at::Tensor& tensor) { put(tensor.defined() ? tensors().add(tensor) : 0); }

 private:
  size_t at_ = 0;
};

void writeResult(Writer& writer, const c10::IValue& value, const Result& result) {
  if (result.alias >= 0) return writer.put(0);  // JavaScript returns the argument itself
  switch (result.kind) {
    case kTensor: return writer.put(value.toTensor());
    case kInt: return writer.put(static_cast<double>(value.toInt()));
    case kFloat: return writer.put(value.toDouble());
    case kBool: return writer.put(value.toBool() ? 1 : 0);
    case kScalar: return writer.put(value.toScalar().toDouble());
    case kTensorList: {
      auto list = value.toTensorList();
      writer.put(static_cast<double>(list.size()));
      for (size_t i = 0; i < list.size(); i++) writer.put(at::Tensor(list.get(i)));
      return;
    }
    case kIntList: {
      auto list = value.toIntList();
      writer.put(static_cast<double>(list.size()));
      for (size_t i = 0; i < list.size(); i++) writer.put(static_cast<double>(list.get(i)));
      return;
    }
    default: throw EngineError("ARG_KIND", "the schema returns a kind of value that JavaScript cannot take");
  }
}

// Empties the stack that all calls share, also after an exception.
struct StackGuard {
  torch::jit::Stack& stack;
  ~StackGuard() { stack.clear(); }
};

napi_value describePlan(napi_env env, size_t index) {
  const c10::FunctionSchema& schema = plans()[index].op.schema();
  std::ostringstream text;
  text << schema;
  napi_value result, parameters, results;
  check(napi_create_object(env, &result), "napi_create_object");
  check(napi_create_array(env, &parameters), "napi_create_array");
  check(napi_create_array(env, &results), "napi_create_array");
  const Plan& plan = plans()[index];
  for (size_t i = 0; i < plan.parameters.size(); i++) {
    napi_value item;
    check(napi_create_object(env, &item), "napi_create_object");
    const c10::Argument& argument = schema.arguments()[i];
    napi_set_named_property(env, item, "name", makeString(env, argument.name()));
    napi_set_named_property(env, item, "kind", makeNumber(env, plan.parameters[i].kind));
    napi_set_named_property(env, item, "optional", makeBoolean(env, plan.parameters[i].optional));
    napi_set_named_property(env, item, "hasDefault", makeBoolean(env, plan.parameters[i].fallback.has_value()));
    napi_set_named_property(env, item, "length", makeNumber(env, argument.N().value_or(0)));
    napi_set_element(env, parameters, static_cast<uint32_t>(i), item);
  }
  for (size_t i = 0; i < plan.results.size(); i++) {
    napi_value item;
    check(napi_create_object(env, &item), "napi_create_object");
    napi_set_named_property(env, item, "kind", makeNumber(env, plan.results[i].kind));
    napi_set_named_property(env, item, "alias", makeNumber(env, plan.results[i].alias));
    napi_set_element(env, results, static_cast<uint32_t>(i), item);
  }
  napi_set_named_property(env, result, "index", makeNumber(env, static_cast<double>(index)));
  napi_set_named_property(env, result, "schema", makeString(env, text.str()));
  napi_set_named_property(env, result, "parameters", parameters);
  napi_set_named_property(env, result, "results", results);
  return result;
}

Plan makePlan(const std::string& name) {
  size_t namespaceEnd = name.find("::");
  size_t dot = namespaceEnd == std::string::npos ? std::string::npos : name.find('.', namespaceEnd);
  std::string overload = dot == std::string::npos ? "" : name.substr(dot + 1);
  Plan plan(c10::Dispatcher::singleton().findSchemaOrThrow(name.substr(0, dot).c_str(), overload.c_str()));
  const c10::FunctionSchema& schema = plan.op.schema();
  for (const c10::Argument& argument : schema.arguments()) {
    bool optional = false;
    Kind kind = kindOf(argument.real_type(), &optional);
    plan.parameters.push_back({kind, optional, argument.default_value()});
  }
  for (const c10::Argument& returned : schema.returns()) {
    bool optional = false;
    Result result{kindOf(returned.real_type(), &optional), -1};
    const c10::AliasInfo* written = returned.alias_info();
    if (result.kind == kTensor && written != nullptr && written->isWrite()) {
      for (size_t i = 0; i < schema.arguments().size(); i++) {
        const c10::AliasInfo* source = schema.arguments()[i].alias_info();
        if (source != nullptr && source->isWrite() && source->beforeSets() == written->beforeSets()) result.alias = static_cast<int>(i);
      }
    }
    plan.results.push_back(result);
  }
  return plan;
}

}  // namespace

// resolveOp("aten::add.Tensor"): {index, schema, parameters: [{name, kind, optional, hasDefault, length}], results: [{kind, alias}]}.
napi_value resolveOp(napi_env env, napi_callback_info info) {
  Args args(env, info, 1);
  static auto* known = new std::unordered_map<std::string, size_t>();
  std::string name = args.string(0);
  auto found = known->find(name);
  if (found == known->end()) {
    plans().push_back(makePlan(name));
    found = known->emplace(name, plans().size() - 1).first;
  }
  return describePlan(env, found->second);
}

// callOp(): see the top of this file.
napi_value callOp(napi_env, napi_callback_info) {
  Reader reader;
  size_t index = reader.length();
  if (index >= plans().size()) throw EngineError("ARG_KIND", "unknown operator index " + std::to_string(index));
  Plan& plan = plans()[index];
  size_t given = reader.length();
  if (given > plan.parameters.size()) {
    throw EngineError("ARG_COUNT", "expected at most " + std::to_string(plan.parameters.size()) + " arguments, got " + std::to_string(given));
  }
  static auto* shared = new torch::jit::Stack();
  torch::jit::Stack& stack = *shared;
  StackGuard guard{stack};
  for (size_t i = 0; i < plan.parameters.size(); i++) {
    const Parameter& parameter = plan.parameters[i];
    int64_t tag = i < given ? reader.integer() : 0;
    if (tag == 2) {
      stack.push_back(readValue(reader, parameter.kind));
    } else if (tag == 0 && parameter.fallback.has_value()) {
      stack.push_back(*parameter.fallback);
    } else if (parameter.optional) {
      stack.emplace_back();
    } else {
      throw EngineError(i < given ? "ARG_KIND" : "ARG_COUNT", "argument \"" + plan.op.schema().arguments()[i].name() + "\" is required");
    }
  }
  vital.op.store(plan.op.operator_name().name.c_str(), std::memory_order_relaxed);
  plan.op.callBoxed(stack);
  noteEnqueued();
  Writer writer;
  for (size_t i = 0; i < plan.results.size(); i++) writeResult(writer, stack[i], plan.results[i]);
  return nullptr;
}

}  // namespace grove
