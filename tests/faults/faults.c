/* Preloaded into a program under test: the n-th call of one kind under a folder fails.
 *
 * `faults_arm` says which; calls are counted from then on. Everything outside the folder, and every
 * other call, goes its way. A `write` that fails with ENOSPC takes half of the bytes first, as disks
 * do; the rest of it is what fails then.
 *
 * Of a program that is not armed so, the environment says which folder is on a disk (FULL_DISK) that is
 * full for as long as a file exists (FULL_WHILE).
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { FSYNC, WRITE, RENAME, LISTDIR, LINK, CREATE, UNLINK, READ, KINDS };

static const char *full_folder, *full_while;

static char armed_folder[PATH_MAX];
static int armed_kind = -1, armed_error, armed_for_ever;
static long armed_at;
static atomic_long counts[KINDS];
static atomic_int rest_of; /* a descriptor that has taken half of a write; 0: none */

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = dlsym(RTLD_NEXT, name)

__attribute__((constructor)) static void read_environment(void)
{
    full_folder = getenv("FULL_DISK");
    full_while = getenv("FULL_WHILE");
}

static int is_full(int kind, const char *path)
{
    if (!full_folder || !full_while || (kind != FSYNC && kind != WRITE && kind != CREATE)) return 0;
    int before = errno;
    int is = !strncmp(path, full_folder, strlen(full_folder)) && !access(full_while, F_OK);
    errno = is ? ENOSPC : before;
    return is;
}

void faults_arm(const char *folder, int kind, long at, int error, int for_ever)
{
    strncpy(armed_folder, folder, sizeof armed_folder - 1);
    armed_kind = kind;
    armed_at = at;
    armed_error = error;
    armed_for_ever = for_ever;
    for (int one = 0; one < KINDS; one++) atomic_store(&counts[one], 0);
}

long faults_count(int kind) { return atomic_load(&counts[kind]); }

static int fails(int kind, const char *path)
{
    if (!path) return 0;
    if (is_full(kind, path)) return 1;
    size_t length = strlen(armed_folder);
    if (!length || strncmp(path, armed_folder, length)) return 0;
    long at = atomic_fetch_add(&counts[kind], 1) + 1;
    if (kind != armed_kind) return 0;
    if (at != armed_at && !(armed_for_ever && at > armed_at)) return 0;
    errno = armed_error;
    return 1;
}

static int fails_open(int kind, int descriptor)
{
    char name[64], path[PATH_MAX];
    int before = errno;
    if (!armed_folder[0] && !full_folder) return 0;
    snprintf(name, sizeof name, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(name, path, sizeof path - 1);
    errno = before;
    if (length < 0) return 0;
    path[length] = 0;
    return fails(kind, path);
}

/* How much of a write goes through: all of it, half, or -1. */
static ssize_t allowed(int descriptor, size_t size)
{
    int expected = descriptor;
    if (descriptor && atomic_compare_exchange_strong(&rest_of, &expected, 0)) {
        errno = armed_error;
        return -1;
    }
    if (!fails_open(WRITE, descriptor)) return size;
    if (armed_error == ENOSPC && size > 1 && !armed_for_ever) {
        atomic_store(&rest_of, descriptor);
        return size / 2;
    }
    return -1;
}

int fsync(int descriptor)
{
    REAL(int, "fsync", int);
    return fails_open(FSYNC, descriptor) ? -1 : real(descriptor);
}

int fdatasync(int descriptor)
{
    REAL(int, "fdatasync", int);
    return fails_open(FSYNC, descriptor) ? -1 : real(descriptor);
}

ssize_t write(int descriptor, const void *data, size_t size)
{
    REAL(ssize_t, "write", int, const void *, size_t);
    ssize_t some = allowed(descriptor, size);
    return some < 0 ? -1 : real(descriptor, data, some);
}

ssize_t pwrite64(int descriptor, const void *data, size_t size, off64_t at)
{
    REAL(ssize_t, "pwrite64", int, const void *, size_t, off64_t);
    ssize_t some = allowed(descriptor, size);
    return some < 0 ? -1 : real(descriptor, data, some, at);
}

int rename(const char *from, const char *to)
{
    REAL(int, "rename", const char *, const char *);
    return fails(RENAME, to) ? -1 : real(from, to);
}

int renameat(int from_folder, const char *from, int to_folder, const char *to)
{
    REAL(int, "renameat", int, const char *, int, const char *);
    return fails(RENAME, to) ? -1 : real(from_folder, from, to_folder, to);
}

DIR *opendir(const char *path)
{
    REAL(DIR *, "opendir", const char *);
    return fails(LISTDIR, path) ? NULL : real(path);
}

DIR *fdopendir(int descriptor)
{
    REAL(DIR *, "fdopendir", int);
    return fails_open(LISTDIR, descriptor) ? NULL : real(descriptor);
}

int link(const char *from, const char *to)
{
    REAL(int, "link", const char *, const char *);
    return fails(LINK, to) ? -1 : real(from, to);
}

int linkat(int from_folder, const char *from, int to_folder, const char *to, int flags)
{
    REAL(int, "linkat", int, const char *, int, const char *, int);
    return fails(LINK, to) ? -1 : real(from_folder, from, to_folder, to, flags);
}

int mkdir(const char *path, mode_t mode)
{
    REAL(int, "mkdir", const char *, mode_t);
    return fails(CREATE, path) ? -1 : real(path, mode);
}

int unlink(const char *path)
{
    REAL(int, "unlink", const char *);
    return fails(UNLINK, path) ? -1 : real(path);
}

/* Whether a file that is there is opened to be read; folders are listed. */
static int reads(const char *path, int flags)
{
    struct stat found;
    int before = errno;
    if ((flags & O_ACCMODE) != O_RDONLY || (flags & O_CREAT)) return 0;
    int is = !stat(path, &found) && S_ISREG(found.st_mode);
    errno = before;
    return is;
}

static int opened(const char *symbol, const char *path, int flags, mode_t mode)
{
    int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, symbol);
    if ((flags & O_CREAT) && access(path, F_OK) && fails(CREATE, path)) return -1;
    if (reads(path, flags) && fails(READ, path)) return -1;
    return real(path, flags, mode);
}

int open(const char *path, int flags, ...)
{
    va_list rest;
    va_start(rest, flags);
    mode_t mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    return opened("open", path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
    va_list rest;
    va_start(rest, flags);
    mode_t mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    return opened("open64", path, flags, mode);
}
