/* Counts what a process does to files below one folder, and at one such call kills the process or fills the disk.
 *
 * Preloaded (LD_PRELOAD), so that it also sees what Rust, C++ and numpy write. faults_arm() names the folder and what
 * happens; before that, and elsewhere on the disk, nothing is counted. A write that is hit is done by half: a kill and
 * a full disk leave half-written files.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT, KILL, FULL };

static char root[PATH_MAX];
static long at = -1;
static int kind, notes = -1;
static atomic_long seen;

/* Number `call` is the one that is hit, from 1. `note`: a descriptor that every call is written to, or -1. */
void faults_arm(const char *folder, int what, long call, int note) {
    seen = 0;
    kind = what;
    at = call;
    notes = note;
    strncpy(root, folder, sizeof root - 1);
}

long faults_seen(void) { return seen; }

static int below(const char *path) {
    size_t n = strlen(root);
    return n && strncmp(path, root, n) == 0 && (path[n] == '/' || path[n] == 0);
}

static int of_descriptor(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, PATH_MAX - 1);
    path[n < 0 ? 0 : n] = 0;
    return n > 0;
}

static void absolute(int folder, const char *name, char *path) {
    if (name[0] == '/') {
        snprintf(path, PATH_MAX, "%s", name);
        return;
    }
    char base[PATH_MAX];
    if (folder == AT_FDCWD ? !getcwd(base, sizeof base) : !of_descriptor(folder, base)) base[0] = 0;
    snprintf(path, PATH_MAX, "%.2000s/%.2000s", base, name);
}

/* Whether the disk is full for this call; does not come back from a kill unless `half` is still to be done. */
static int hit(const char *call, const char *path, int *half) {
    if (!root[0] || !below(path)) return 0;
    long number = ++seen;
    if (notes >= 0) {
        char line[PATH_MAX + 64];
        int n = snprintf(line, sizeof line, "%s %.4000s\n", call, path + strlen(root));
        syscall(SYS_write, notes, line, n);
    }
    if (kind == COUNT || number < at) return 0;
    if (kind == KILL && !half) syscall(SYS_kill, getpid(), SIGKILL);
    if (half) *half = number == at;
    return kind == FULL || half;
}

static int hit_name(const char *call, int folder, const char *name) {
    char path[PATH_MAX];
    if (!root[0] || !name) return 0;
    absolute(folder, name, path);
    return hit(call, path, NULL);
}

/* Bytes that a write may still write: all, or half at the call that is hit, or none. */
static ssize_t room(const char *call, int fd, size_t n) {
    char path[PATH_MAX];
    int half = 0;
    if (!root[0] || !of_descriptor(fd, path) || !hit(call, path, &half)) return n;
    return half ? (ssize_t)(n / 2) : 0;
}

static ssize_t done(ssize_t written) {
    if (kind == KILL) syscall(SYS_kill, getpid(), SIGKILL);
    if (written > 0) return written;
    errno = ENOSPC;
    return -1;
}

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = dlsym(RTLD_NEXT, name)

ssize_t write(int fd, const void *from, size_t n) {
    ssize_t may = room("write", fd, n);
    if (may == (ssize_t)n) return syscall(SYS_write, fd, from, n);
    return done(may ? syscall(SYS_write, fd, from, may) : 0);
}

ssize_t pwrite64(int fd, const void *from, size_t n, off_t where) {
    ssize_t may = room("pwrite", fd, n);
    if (may == (ssize_t)n) return syscall(SYS_pwrite64, fd, from, n, where);
    return done(may ? syscall(SYS_pwrite64, fd, from, may, where) : 0);
}

ssize_t pwrite(int fd, const void *from, size_t n, off_t where) { return pwrite64(fd, from, n, where); }

ssize_t writev(int fd, const struct iovec *parts, int count) {
    ssize_t may = room("writev", fd, 2);
    if (may == 2) return syscall(SYS_writev, fd, parts, count);
    return done(may && count ? syscall(SYS_write, fd, parts[0].iov_base, parts[0].iov_len / 2) : 0);
}

size_t fwrite(const void *from, size_t size, size_t n, FILE *file) {
    REAL(size_t, "fwrite", const void *, size_t, size_t, FILE *);
    ssize_t may = room("fwrite", fileno(file), n);
    if (may == (ssize_t)n) return real(from, size, n, file);
    size_t written = may ? real(from, size, may, file) : 0;
    fflush(file);
    done(0);
    return written;
}

static ssize_t copied(const char *call, int to) {
    ssize_t may = room(call, to, 2);
    return may == 2 ? 1 : done(0);
}

ssize_t sendfile64(int to, int from, off_t *where, size_t n) {
    ssize_t may = copied("sendfile", to);
    return may < 0 ? may : syscall(SYS_sendfile, to, from, where, n);
}

ssize_t sendfile(int to, int from, off_t *where, size_t n) { return sendfile64(to, from, where, n); }

ssize_t copy_file_range(int from, off_t *a, int to, off_t *b, size_t n, unsigned flags) {
    ssize_t may = copied("copy_file_range", to);
    return may < 0 ? may : syscall(SYS_copy_file_range, from, a, to, b, n, flags);
}

/* What takes no space goes on where the disk is full; what makes something new does not. */
#define GUARD(call, folder, name, makes) \
    if (hit_name(call, folder, name) && (makes)) { errno = ENOSPC; return -1; }

static int opened(const char *call, int folder, const char *name, int flags, mode_t mode) {
    if (flags & O_CREAT) {
        char path[PATH_MAX];
        struct stat about;
        absolute(folder, name, path);
        GUARD(call, folder, name, stat(path, &about) != 0)
    }
    return syscall(SYS_openat, folder, name, flags, mode);
}

#define OPEN(NAME, FOLDER, ...) \
    int NAME(__VA_ARGS__, const char *name, int flags, ...) { \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        return opened("open", FOLDER, name, flags, mode); \
    }
OPEN(openat, folder, int folder)
OPEN(openat64, folder, int folder)

#define OPEN_HERE(NAME) \
    int NAME(const char *name, int flags, ...) { \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        return opened("open", AT_FDCWD, name, flags, mode); \
    }
OPEN_HERE(open)
OPEN_HERE(open64)

int rename(const char *from, const char *to) {
    hit_name("rename", AT_FDCWD, to);
    return syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
}

int unlink(const char *name) {
    hit_name("unlink", AT_FDCWD, name);
    return syscall(SYS_unlinkat, AT_FDCWD, name, 0);
}

int unlinkat(int folder, const char *name, int flags) {
    hit_name("unlink", folder, name);
    return syscall(SYS_unlinkat, folder, name, flags);
}

int rmdir(const char *name) {
    hit_name("rmdir", AT_FDCWD, name);
    return syscall(SYS_unlinkat, AT_FDCWD, name, AT_REMOVEDIR);
}

int mkdir(const char *name, mode_t mode) {
    struct stat about;
    GUARD("mkdir", AT_FDCWD, name, stat(name, &about) != 0)
    return syscall(SYS_mkdirat, AT_FDCWD, name, mode);
}

int ftruncate64(int fd, off_t size) {
    struct stat about;
    int grows = fstat(fd, &about) == 0 && about.st_size < size;
    ssize_t may = room("truncate", fd, 2);
    if (may != 2 && (kind == KILL || grows)) return (int)done(0);
    return syscall(SYS_ftruncate, fd, size);
}

int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }

int fsync(int fd) {
    char path[PATH_MAX];
    if (root[0] && of_descriptor(fd, path)) hit("fsync", path, NULL);
    return syscall(SYS_fsync, fd);
}
