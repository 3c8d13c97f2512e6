// The only entry point Python sees. Every function takes raw addresses and sizes and releases the GIL.
#include <nanobind/nanobind.h>

void bind_kernels(nanobind::module_& module);
void bind_codec(nanobind::module_& module);
void bind_io(nanobind::module_& module);
void bind_bench(nanobind::module_& module);
void bind_tape(nanobind::module_& module);

NB_MODULE(_native, module) {
  module.doc() = "Native kernels and I/O of TokenVM. Use the typed functions of tokenvm.kernels and tokenvm.memory.";
  bind_kernels(module);
  bind_codec(module);
  bind_tape(module);
  bind_io(module);
  bind_bench(module);
}
