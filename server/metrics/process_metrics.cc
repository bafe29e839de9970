#include "server/metrics/process_metrics.h"

#include <dirent.h>
#include <sys/resource.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <string>

namespace smt {
namespace {

const auto g_start = std::chrono::system_clock::now();  // set while the program loads

void Line(std::ostream& out, const char* name, const char* type, const char* help, double value) {
  out << "# HELP " << name << ' ' << help << "\n# TYPE " << name << ' ' << type << '\n'
      << name << ' ' << std::fixed << value << '\n';
}

}  // namespace

void AppendProcessMetrics(std::ostream& out) {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const double cpu = static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
                     static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
  Line(out, "process_cpu_seconds_total", "counter", "CPU seconds, user and system.", cpu);

  double pages = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> pages >> resident;
  const auto page_size = static_cast<double>(sysconf(_SC_PAGESIZE));
  Line(out, "process_virtual_memory_bytes", "gauge", "Virtual memory in bytes.", pages * page_size);
  Line(out, "process_resident_memory_bytes", "gauge", "Resident memory in bytes.", resident * page_size);

  double open = 0;
  if (DIR* dir = opendir("/proc/self/fd")) {
    while (const dirent* entry = readdir(dir)) open += entry->d_name[0] != '.';
    closedir(dir);
    --open;  // the one that reads them
  }
  Line(out, "process_open_fds", "gauge", "Open file descriptors.", open);
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  Line(out, "process_max_fds", "gauge", "Most file descriptors.", static_cast<double>(limit.rlim_cur));
  Line(out, "process_start_time_seconds", "gauge", "Start of the process in seconds since 1970.",
       std::chrono::duration<double>(g_start.time_since_epoch()).count());
}

}  // namespace smt
