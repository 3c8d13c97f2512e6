// Arrays in, arrays out. Every call that may wait or take a lock releases the GIL.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <unistd.h>

#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>

#include "tokenvm/crc32c.hpp"
#include "tokenvm/io_pool.hpp"
#include "tokenvm/ring.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using tokenvm::Check;
using tokenvm::Copy;
using tokenvm::IoPool;
using tokenvm::Kind;
using tokenvm::Outcome;
using tokenvm::Ring;
using Unlocked = nb::call_guard<nb::gil_scoped_release>;

// A T of the process that made it. A forked child has its memory but none of the threads, and its locks may be held for
// ever: there T is out of reach, and leaked on purpose, because destructors would wait for threads that do not exist.
template <class T>
class Owned {
 public:
  explicit Owned(std::unique_ptr<T> it) : owner_(getpid()), it_(it.release()) {}
  ~Owned() {
    if (at_home()) delete it_;
  }
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;

  bool at_home() const { return getpid() == owner_; }
  T& get() const {
    if (!at_home())
      throw std::runtime_error("process " + std::to_string(owner_) + " owns these I/O threads, a fork of it has none: "
                               "make a new device here, or start processes with the method 'spawn'");
    return *it_;
  }

 private:
  const pid_t owner_;
  T* const it_;
};
using OwnedPool = Owned<IoPool>;
using OwnedRing = Owned<Ring>;

template <class T>
using Column = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

template <class T>
nb::ndarray<nb::numpy, T, nb::ndim<1>> to_numpy(std::vector<T> values) {
  auto* owned = new std::vector<T>(std::move(values));
  nb::capsule owner(owned, [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
  return nb::ndarray<nb::numpy, T, nb::ndim<1>>(owned->data(), {owned->size()}, owner);
}

// How parts lie in a store with a codec: (packed, far_bytes, tail). None: as they are, each in one place.
using Packing = std::optional<std::tuple<Column<uint8_t>, Column<uint64_t>, Column<uint64_t>>>;

void set_packing(std::vector<Copy>& copies, const Packing& packing) {
  if (!packing) return;
  const auto& [packed, far_bytes, tail] = *packing;
  const size_t n = copies.size();
  if (packed.size() != n || far_bytes.size() != n || tail.size() != n)
    throw std::invalid_argument("the columns of copies differ in length");
  for (size_t i = 0; i < n; ++i) {
    Copy& copy = copies[i];
    copy.packed = packed.data()[i] != 0;
    copy.far_bytes = far_bytes.data()[i];
    copy.tail = tail.data()[i];
    if (copy.far_bytes == 0 || copy.far_bytes > copy.nbytes || (copy.packed && copy.nbytes % 512 != 0))
      throw std::invalid_argument("a packed copy has too many far bytes or none, or no whole 512 bytes");
    if (!is_file(copy.kind) && (copy.packed || copy.far_bytes != copy.nbytes))
      throw std::invalid_argument("only files hold packed parts");
  }
}

std::vector<Copy> to_copies(const Column<uint8_t>& kind, const Column<uint8_t>& check, const Column<int32_t>& fd,
                            const Column<uint64_t>& place, const Column<uint64_t>& nbytes,
                            const Column<uint32_t>& checksum, const Packing& packing) {
  const size_t n = kind.size();
  if (check.size() != n || fd.size() != n || place.size() != n || nbytes.size() != n || checksum.size() != n)
    throw std::invalid_argument("the columns of copies differ in length");
  std::vector<Copy> copies(n);
  for (size_t i = 0; i < n; ++i) {
    if (kind.data()[i] > 3 || check.data()[i] > 3 || nbytes.data()[i] == 0)
      throw std::invalid_argument("a copy has an unknown kind or check, or no bytes");
    copies[i] = {static_cast<Kind>(kind.data()[i]), static_cast<Check>(check.data()[i]), fd.data()[i],
                 place.data()[i],                   0,                                   nbytes.data()[i],
                 checksum.data()[i], nbytes.data()[i]};
  }
  set_packing(copies, packing);
  return copies;
}

uint64_t submit_batch(OwnedPool& pool, const Column<uint8_t>& kind, const Column<uint8_t>& check,
                      const Column<int32_t>& fd, const Column<uint64_t>& place, const Column<uint64_t>& address,
                      const Column<uint64_t>& nbytes, const Column<uint32_t>& checksum, bool urgent,
                      const Packing& packing) {
  std::vector<Copy> copies = to_copies(kind, check, fd, place, nbytes, checksum, packing);
  if (address.size() != copies.size()) throw std::invalid_argument("the columns of copies differ in length");
  for (size_t i = 0; i < copies.size(); ++i) copies[i].address = address.data()[i];
  const nb::gil_scoped_release unlocked;
  return pool.get().submit(std::move(copies), urgent);
}

uint64_t submit_program(OwnedRing& ring, const Column<uint8_t>& kind, const Column<uint8_t>& check,
                        const Column<int32_t>& fd, const Column<uint64_t>& place, const Column<uint64_t>& nbytes,
                        const Column<uint32_t>& checksum, const Packing& packing) {
  std::vector<Copy> program = to_copies(kind, check, fd, place, nbytes, checksum, packing);
  for (const Copy& copy : program)
    if (tokenvm::is_outward(copy.kind) || copy.nbytes > ring.get().stride())
      throw std::invalid_argument("a ring takes reads that fit its slots");
  const nb::gil_scoped_release unlocked;
  return ring.get().submit(std::move(program));
}

nb::tuple take_batch(OwnedPool& pool, uint64_t batch) {
  std::vector<Outcome> outcomes;
  {
    const nb::gil_scoped_release unlocked;
    outcomes = pool.get().take(batch);
  }
  std::vector<uint8_t> status(outcomes.size());
  std::vector<uint32_t> checksum(outcomes.size());
  std::vector<uint8_t> packed(outcomes.size());
  for (size_t i = 0; i < outcomes.size(); ++i) {
    status[i] = static_cast<uint8_t>(outcomes[i].status);
    checksum[i] = outcomes[i].checksum;
    packed[i] = outcomes[i].packed;
  }
  return nb::make_tuple(to_numpy(std::move(status)), to_numpy(std::move(checksum)), to_numpy(std::move(packed)));
}

nb::tuple failed_tickets(OwnedRing& ring, uint64_t begin, uint64_t end) {
  std::vector<Ring::Failure> failures;
  {
    const nb::gil_scoped_release unlocked;
    failures = ring.get().failed(begin, end);
  }
  std::vector<uint64_t> tickets;
  std::vector<uint8_t> status;
  for (const Ring::Failure& one : failures) {
    tickets.push_back(one.ticket);
    status.push_back(static_cast<uint8_t>(one.status));
  }
  return nb::make_tuple(to_numpy(std::move(tickets)), to_numpy(std::move(status)));
}

void* at(uint64_t address) { return reinterpret_cast<void*>(static_cast<uintptr_t>(address)); }

// A codec written in Python: encode(part, nbytes, stored, room) and decode(stored, room, part, nbytes) take addresses and
// return whether it went well. Its threads wait for the interpreter, so the pool must be closed before that ends.
class PythonCodec : public tokenvm::Codec {
 public:
  PythonCodec(nb::object encode, nb::object decode) : encode_(std::move(encode)), decode_(std::move(decode)) {}

  bool encode(const uint8_t* part, uint64_t nbytes, uint8_t* stored, uint64_t room) const override {
    return call(encode_, part, nbytes, stored, room);
  }
  bool decode(const uint8_t* stored, uint64_t room, uint8_t* part, uint64_t nbytes) const override {
    return call(decode_, stored, room, part, nbytes);
  }

 private:
  static bool call(const nb::object& function, const uint8_t* from, uint64_t from_bytes, uint8_t* to,
                   uint64_t to_bytes) {
    const nb::gil_scoped_acquire locked;
    try {
      return nb::cast<bool>(function(reinterpret_cast<uintptr_t>(from), from_bytes, reinterpret_cast<uintptr_t>(to),
                                     to_bytes));
    } catch (nb::python_error& error) {
      error.discard_as_unraisable("a codec");
      return false;
    }
  }

  nb::object encode_, decode_;
};

void use_codec(OwnedPool& pool, nb::object encode, nb::object decode) {
  pool.get().use(std::make_unique<PythonCodec>(std::move(encode), std::move(decode)));
}

void make_pool(OwnedPool* pool, size_t threads, uint64_t read_bytes) {
  new (pool) OwnedPool(std::make_unique<IoPool>(threads, read_bytes));
}

void close_pool(OwnedPool& pool) {
  if (pool.at_home()) pool.get().close();
}

void bind_pool(nb::module_& module) {
  nb::class_<OwnedPool>(module, "IoPool", "Native I/O threads that carry out batches of copies.")
      .def("__init__", &make_pool, "threads"_a, "read_bytes"_a)
      .def("submit", &submit_batch, "kind"_a, "check"_a, "fd"_a, "place"_a, "address"_a, "nbytes"_a, "checksum"_a,
           "urgent"_a, "packing"_a = nb::none())
      .def("use_codec", &use_codec, "encode"_a, "decode"_a)
      .def("poll", [](OwnedPool& pool, uint64_t batch) { return static_cast<int>(pool.get().poll(batch)); }, Unlocked())
      .def("wait", [](OwnedPool& pool, uint64_t batch) { return static_cast<int>(pool.get().wait(batch)); }, Unlocked())
      .def("take", &take_batch)
      .def("forget", [](OwnedPool& pool, uint64_t batch) { pool.get().forget(batch); }, Unlocked())
      .def("close", &close_pool, Unlocked())
      .def("drain_intervals", [](OwnedPool& pool, bool outward) { return pool.get().drain_intervals(outward); },
           "outward"_a, Unlocked())
      .def("moved_bytes", [](OwnedPool& pool) { return pool.get().moved_bytes(); }, Unlocked());
}

void make_ring(OwnedRing* ring, OwnedPool& pool, uint64_t base, uint64_t slots, uint64_t stride) {
  new (ring) OwnedRing(std::make_unique<Ring>(pool.get(), base, slots, stride));
}

void bind_ring(nb::module_& module) {
  nb::class_<OwnedRing>(module, "Ring", "The staging ring: ordered reads paced by credits.")
      .def("__init__", &make_ring, "pool"_a, "base"_a, "slots"_a, "stride"_a, nb::keep_alive<1, 2>())
      .def("submit", &submit_program, "kind"_a, "check"_a, "fd"_a, "place"_a, "nbytes"_a, "checksum"_a,
           "packing"_a = nb::none())
      .def("wait", [](OwnedRing& ring, uint64_t end) { return static_cast<int>(ring.get().wait(end)); }, Unlocked())
      .def("release", [](OwnedRing& ring, uint64_t end) { ring.get().release(end); }, Unlocked())
      .def("failed", &failed_tickets)
      .def("cancel", [](OwnedRing& ring) { ring.get().cancel(); }, Unlocked())
      .def("marks", [](OwnedRing& ring) { return ring.get().marks(); }, Unlocked());
}

}  // namespace

void bind_io(nb::module_& module) {
  bind_pool(module);
  bind_ring(module);
  module.def("crc32c", [](uint64_t address, uint64_t nbytes, uint32_t crc) {
    return tokenvm::crc32c(at(address), nbytes, crc);
  }, "address"_a, "nbytes"_a, "crc"_a = 0, Unlocked());
  module.def("crc32c_portable", [](uint64_t address, uint64_t nbytes, uint32_t crc) {
    return tokenvm::crc32c_portable(at(address), nbytes, crc);
  }, "address"_a, "nbytes"_a, "crc"_a = 0, Unlocked());
}
