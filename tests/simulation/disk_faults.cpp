#include "tests/simulation/disk_faults.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <filesystem>

namespace foretoken::simulation {
namespace {

thread_local Disk* current = nullptr;

}  // namespace

Disk::Fate Disk::step() {
  if (crash_in_ < 0 || crash_in_-- > 0) return Fate::kGoesOn;
  crash_in_ = -1;
  return coin() ? Fate::kDiesBefore : Fate::kDiesAfter;
}

void Disk::die() {
  if (dead_) return;
  dead_ = true;
  if (on_death) on_death();
}

OnDisk::OnDisk(Disk& disk) { current = &disk; }
OnDisk::~OnDisk() { current = nullptr; }

namespace {

// A call that changes the disk, all or nothing.
template <class Call>
int change(Call call) {
  Disk* disk = current;
  if (!disk) return call();
  const auto fate = disk->dead() ? Disk::Fate::kDiesBefore : disk->step();
  int result = -1;
  if (fate != Disk::Fate::kDiesBefore) result = call();
  if (fate != Disk::Fate::kGoesOn) {
    disk->die();
    errno = EIO;
    return -1;
  }
  return result;
}

}  // namespace
}  // namespace foretoken::simulation

using foretoken::simulation::change;
using foretoken::simulation::current;
using foretoken::simulation::Disk;
namespace fs = std::filesystem;

extern "C" {

int __real_open(const char* path, int flags, mode_t mode);
int __wrap_open(const char* path, int flags, ...) {
  mode_t mode = 0;
  if (flags & O_CREAT) {
    va_list arguments;
    va_start(arguments, flags);
    mode = va_arg(arguments, mode_t);
    va_end(arguments);
  }
  if ((flags & (O_WRONLY | O_RDWR)) == 0) return __real_open(path, flags, mode);
  return change([&] { return __real_open(path, flags, mode); });
}

ssize_t __real_write(int descriptor, const void* bytes, size_t n);
ssize_t __wrap_write(int descriptor, const void* bytes, size_t n) {
  Disk* disk = current;
  if (!disk) return __real_write(descriptor, bytes, n);
  if (disk->dead()) {
    errno = EIO;
    return -1;
  }
  const Disk::Fate fate = disk->step();
  if (fate != Disk::Fate::kGoesOn) {  // dies with a part of it written
    const ssize_t done = __real_write(descriptor, bytes, disk->part_of(n));
    (void)done;
    disk->die();
    errno = EIO;
    return -1;
  }
  if (disk->full()) {
    disk->note_refused();
    const size_t part = disk->coin() ? 0 : disk->part_of(n / 2);
    if (part > 0) return __real_write(descriptor, bytes, part);
    errno = ENOSPC;
    return -1;
  }
  return __real_write(descriptor, bytes, n);
}

int __real_fsync(int descriptor);
int __wrap_fsync(int descriptor) {
  return change([&] { return __real_fsync(descriptor); });
}
int __real_fdatasync(int descriptor);
int __wrap_fdatasync(int descriptor) {
  return change([&] { return __real_fdatasync(descriptor); });
}
int __real_ftruncate(int descriptor, off_t length);
int __wrap_ftruncate(int descriptor, off_t length) {
  return change([&] { return __real_ftruncate(descriptor, length); });
}
int __real_truncate(const char* path, off_t length);
int __wrap_truncate(const char* path, off_t length) {
  return change([&] { return __real_truncate(path, length); });
}
int __real_unlink(const char* path);
int __wrap_unlink(const char* path) {
  return change([&] { return __real_unlink(path); });
}
int __real_rename(const char* from, const char* to);
int __wrap_rename(const char* from, const char* to) {
  return change([&] { return __real_rename(from, to); });
}

// std::filesystem::remove(path, error) and rename(from, to, error), which live in libstdc++.
bool __real__ZNSt10filesystem6removeERKNS_7__cxx114pathERSt10error_code(const fs::path& path,
                                                                        std::error_code& error);
bool __wrap__ZNSt10filesystem6removeERKNS_7__cxx114pathERSt10error_code(const fs::path& path,
                                                                        std::error_code& error) {
  bool removed = false;
  change([&] {
    removed = __real__ZNSt10filesystem6removeERKNS_7__cxx114pathERSt10error_code(path, error);
    return 0;
  });
  return removed;
}
void __real__ZNSt10filesystem6renameERKNS_7__cxx114pathES3_RSt10error_code(const fs::path& from,
                                                                           const fs::path& to,
                                                                           std::error_code& error);
void __wrap__ZNSt10filesystem6renameERKNS_7__cxx114pathES3_RSt10error_code(const fs::path& from,
                                                                           const fs::path& to,
                                                                           std::error_code& error) {
  change([&] {
    __real__ZNSt10filesystem6renameERKNS_7__cxx114pathES3_RSt10error_code(from, to, error);
    return 0;
  });
}

}  // extern "C"
