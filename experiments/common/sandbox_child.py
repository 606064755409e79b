"""What runs inside a sandboxed process: limits, then a program and its tests.

`sandbox` passes this file's source to a fresh interpreter and one JSON object
on standard input. Standard library alone, and no import of this package.
"""

import ctypes
import json
import os
import resource
import struct
import sys
import types

# Refused whatever the arguments: other processes, the network, other limits.
REFUSED = {
  "os.exec",
  "os.fork",
  "os.forkpty",
  "os.kill",
  "os.killpg",
  "os.posix_spawn",
  "os.spawn",
  "os.system",
  "pty.spawn",
  "resource.prlimit",
  "resource.setrlimit",
  "socket.bind",
  "socket.connect",
  "socket.getaddrinfo",
  "socket.gethostbyaddr",
  "socket.gethostbyname",
  "socket.sendmsg",
  "socket.sendto",
  "subprocess.Popen",
}
# These change the file system: where their paths and the descriptors of the
# folders stand that the paths are relative to (-1 for none).
CHANGES = {
  "os.chmod": ((0, 2),),
  "os.chown": ((0, 3),),
  "os.link": ((0, 2), (1, 3)),
  "os.mkdir": ((0, 2),),
  "os.remove": ((0, 1),),
  "os.removexattr": ((0, None),),
  "os.rename": ((0, 2), (1, 3)),
  "os.rmdir": ((0, 1),),
  "os.setxattr": ((0, None),),
  "os.symlink": ((1, 2),),
  "os.truncate": ((0, None),),
  "os.utime": ((0, 3),),
}
# Landlock: the same numbers on every architecture (linux/landlock.h).
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
WRITE_FILE, REFER, TRUNCATE = 1 << 1, 1 << 13, 1 << 14
# Removing and making anything, bits 4 to 12.
CHANGE_FOLDER = sum(1 << bit for bit in range(4, 13))
SET_NO_NEW_PRIVS = 38
CAPABILITY_VERSION = 0x20080522


def limit(limits):
  """Lowers soft and hard limits alike."""
  size = limits["memory_mb"] << 20
  for name, value in (
    ("RLIMIT_CPU", limits["cpu_seconds"]),
    ("RLIMIT_AS", size),
    ("RLIMIT_FSIZE", limits["file_mb"] << 20),
    ("RLIMIT_NOFILE", 64),
    # Counted per user: no further process, nor thread. Root is exempt.
    ("RLIMIT_NPROC", 1),
    ("RLIMIT_CORE", 0),
  ):
    resource.setrlimit(getattr(resource, name), (value, value))


def drop_capabilities():
  """Root keeps its files, but can raise no limit and leave no namespace."""
  header = struct.pack("=Ii", CAPABILITY_VERSION, 0)
  ctypes.CDLL(None).capset(header, bytes(24))


def confine(folder):
  """Lets the kernel refuse changes outside `folder`; returns whether it does.

  Binds this process and all it starts, root and native code too. Where the
  kernel can, TCP and signals to other processes are refused as well.
  """
  libc = ctypes.CDLL(None)

  def call(number, *args):
    words = [ctypes.c_long(x) if isinstance(x, int) else x for x in args]
    return libc.syscall(ctypes.c_long(number), *words)

  version = call(CREATE_RULESET, None, 0, 1)
  if version < 1:
    return False
  files = WRITE_FILE | (TRUNCATE if version >= 3 else 0)
  changes = files | CHANGE_FOLDER | (REFER if version >= 2 else 0)
  # Of files, of the network (bind, connect), of signals and sockets.
  rules = [changes]
  rules += [3] if version >= 4 else []
  rules += [3] if version >= 6 else []
  packed = struct.pack(f"={len(rules)}Q", *rules)
  ruleset = call(CREATE_RULESET, packed, len(packed), 0)
  if ruleset < 0:
    return False
  for path, allowed in ((folder, changes), (os.devnull, files)):
    place = os.open(path, os.O_PATH)
    rule = struct.pack("=Qi", allowed, place)
    if call(ADD_RULE, ruleset, 1, rule, 0):
      return False
    os.close(place)
  libc.prctl(SET_NO_NEW_PRIVS, 1, 0, 0, 0)
  done = call(RESTRICT_SELF, ruleset, 0) == 0
  os.close(ruleset)
  return done


def guard(folder):
  """Refuses, by an audit hook, what a program for a test should not do."""
  real_path, join, separator = os.path.realpath, os.path.join, os.sep
  decode, null = os.fsdecode, os.devnull
  writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
  root = real_path(folder)

  def inside(path, descriptor=-1):
    if isinstance(path, int):  # Already open.
      return True
    path = decode(path)
    if descriptor not in (-1, None):
      path = join(f"/proc/self/fd/{descriptor}", path)
    path = real_path(path)
    return path in (null, root) or path.startswith(root + separator)

  def hook(event, args):
    if event == "open":
      refused = bool(args[2] & writing) and not inside(args[0])
    elif event in CHANGES:
      refused = not all(
        inside(args[path], -1 if base is None else args[base])
        for path, base in CHANGES[event]
      )
    else:
      refused = event in REFUSED
    if refused:
      raise PermissionError(f"{event} is refused in the sandbox")

  sys.addaudithook(hook)


def main():
  """Reports lines `nonce name` on the given descriptor, one per thing done."""
  job = json.load(sys.stdin)
  nonce, channel, leave = job["nonce"], job["channel"], os._exit
  write, stdout = os.write, sys.stdout

  def report(name):
    write(channel, f"{nonce} {name}\n".encode())

  empty = os.open(os.devnull, os.O_RDONLY)
  os.dup2(empty, 0)
  os.close(empty)
  limit(job["limits"])
  drop_capabilities()
  if confine(os.getcwd()):
    report("files confined")
  elif job["root"]:
    # The audit hook alone must not stand between a model and a whole machine.
    report("program refused")
    leave(1)
  guard(os.getcwd())
  # As a module, so that dataclasses and `from solution import f` work, and
  # under another name than `__main__`, so that demonstrations do not run.
  module = types.ModuleType("solution")
  sys.modules["solution"] = module
  parts = [("program", job["program"]), *job["tests"]]
  for name, source in parts:
    try:
      exec(compile(source, f"<{name}>", "exec"), module.__dict__)
    except BaseException as error:  # SystemExit is a failure too.
      report(f"{name} raised {type(error).__name__}")
      if name == "program":
        break
    else:
      report(f"{name} passed")
  try:
    stdout.flush()
  except (OSError, ValueError):  # Too much of it, or closed.
    pass
  # Whoever listens ends the process after this word.
  report("end finished")
  leave(0)  # Threads left behind must not keep the process.


main()
