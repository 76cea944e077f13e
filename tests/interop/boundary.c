// Kills the process it is loaded into (LD_PRELOAD) with SIGKILL at the n-th boundary between it and the world: just
// before or just after something is written to a file or a socket, flushed, renamed, cut or removed, and after
// something is received. Only regular files, sockets and names count.
//
// The file named by OTONIX_TEST_BOUNDARY holds the number; nothing happens before that file exists. 0 kills nothing.
// What was reached is appended to the file of that name with ".trace": number, before or after, call, name.
// With OTONIX_TEST_BOUNDARY_OF=journal,pay only files and folders count whose names begin with one of these.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_long passed;
static atomic_long kill_at = -1;

static int armed(void) {
    if (atomic_load(&kill_at) >= 0) return 1;
    const char *name = getenv("OTONIX_TEST_BOUNDARY");
    if (!name) return 0;
    int file = syscall(SYS_openat, AT_FDCWD, name, O_RDONLY | O_CLOEXEC, 0);
    if (file < 0) return 0;
    char text[32] = {0};
    long got = syscall(SYS_read, file, text, sizeof text - 1);
    syscall(SYS_close, file);
    if (got <= 0) return 0;
    atomic_store(&kill_at, atol(text));
    return 1;
}

static int is_meant(const char *name) {
    const char *only = getenv("OTONIX_TEST_BOUNDARY_OF");
    if (!only) return 1;
    for (;;) {
        size_t length = strcspn(only, ",");
        if (length > 0 && strncmp(name, only, length) == 0) return 1;
        if (only[length] == 0) return 0;
        only += length + 1;
    }
}

static void reached(const char *when, const char *what, int fd, const char *path) {
    char link[64], target[PATH_MAX] = "", line[PATH_MAX + 128], name[PATH_MAX];
    if (!path) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        long got = syscall(SYS_readlinkat, AT_FDCWD, link, target, sizeof target - 1);
        target[got > 0 ? got : 0] = 0;
        path = target;
    }
    const char *last = strrchr(path, '/');
    last = last ? last + 1 : path;
    if (!is_meant(last)) return;
    long here = atomic_fetch_add(&passed, 1) + 1;
    int length = snprintf(line, sizeof line, "%ld %s %s %s\n", here, when, what, last);
    snprintf(name, sizeof name, "%s.trace", getenv("OTONIX_TEST_BOUNDARY"));
    int trace = syscall(SYS_openat, AT_FDCWD, name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (trace >= 0) {
        syscall(SYS_write, trace, line, length);
        syscall(SYS_close, trace);
    }
    if (here == atomic_load(&kill_at)) syscall(SYS_kill, syscall(SYS_getpid), SIGKILL);
}

static int counts(int fd) {
    if (fd < 3 || !armed()) return 0;
    struct stat about;
    if (syscall(SYS_fstat, fd, &about) != 0) return 0;
    return S_ISREG(about.st_mode) || S_ISSOCK(about.st_mode) || S_ISDIR(about.st_mode);
}

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

#define ON_FD(type, name, parameters, ...) \
    type name parameters { \
        REAL(name); \
        int counted = counts(fd); \
        if (counted) reached("before", #name, fd, 0); \
        type result = real(__VA_ARGS__); \
        if (counted) reached("after", #name, fd, 0); \
        return result; \
    }

ON_FD(ssize_t, write, (int fd, const void *bytes, size_t length), fd, bytes, length)
ON_FD(ssize_t, writev, (int fd, const struct iovec *parts, int count), fd, parts, count)
ON_FD(ssize_t, pwrite, (int fd, const void *bytes, size_t length, off_t at), fd, bytes, length, at)
ON_FD(ssize_t, pwrite64, (int fd, const void *bytes, size_t length, off64_t at), fd, bytes, length, at)
ON_FD(ssize_t, send, (int fd, const void *bytes, size_t length, int flags), fd, bytes, length, flags)
ON_FD(ssize_t, sendmsg, (int fd, const struct msghdr *message, int flags), fd, message, flags)
ON_FD(int, fsync, (int fd), fd)
ON_FD(int, fdatasync, (int fd), fd)
ON_FD(int, ftruncate, (int fd, off_t length), fd, length)
ON_FD(int, ftruncate64, (int fd, off64_t length), fd, length)

// Only what was received matters: a read that would block is no boundary.
ssize_t recv(int fd, void *bytes, size_t length, int flags) {
    REAL(recv);
    ssize_t result = real(fd, bytes, length, flags);
    if (result > 0 && !(flags & MSG_PEEK) && counts(fd)) {
        reached("after", "recv", fd, 0);
    }
    return result;
}

#define ON_PATH(name, parameters, path, ...) \
    int name parameters { \
        REAL(name); \
        int counted = armed(); \
        if (counted) reached("before", #name, -1, path); \
        int result = real(__VA_ARGS__); \
        if (counted) reached("after", #name, -1, path); \
        return result; \
    }

ON_PATH(rename, (const char *from, const char *to), to, from, to)
ON_PATH(renameat, (int a, const char *from, int b, const char *to), to, a, from, b, to)
ON_PATH(unlink, (const char *path), path, path)
ON_PATH(unlinkat, (int at, const char *path, int flags), path, at, path, flags)
