/* Counts what a process does to the files under one folder, and at the Nth time kills it or fills its disk; or counts
 * what it reads of them, and makes the Nth file unreadable from there on, as a bad sector does; or moves all that is in
 * the folder away, as when a disk is unplugged; or sets its clock back by a day from there on.
 *
 * Preloaded into the Python of tests/faults/sweep.py, so that the tested code has no hook: libraries in C, C++ and Rust
 * are counted as Python itself is. Counted are creating, writing, resizing, renaming, syncing and removing. A fatal
 * write is torn: half of it is written first. From a full disk's Nth event on, everything that needs room fails.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

enum mode { COUNT, KILL, FULL, BAD, GONE, CLOCK };

#define DAY_S 86400
enum verdict { GO_ON, DIE, NO_ROOM };

static char root[PATH_MAX];
static size_t root_length;
static int log_fd = -1;
static long target;
static enum mode chosen;
static atomic_long events;
static atomic_int armed;

/* Called by the tested process itself. A log of -1 is none. */
void arm(const char *folder, int mode, long number, int log)
{
    strncpy(root, folder, sizeof root - 1);
    root_length = strlen(root);
    chosen = mode;
    target = number;
    log_fd = log;
    events = 0;
    armed = 1;
}

long counted(void) { return events; }

static int inside(const char *path)
{
    return strncmp(path, root, root_length) == 0 && (path[root_length] == '/' || path[root_length] == 0);
}

static int of_fd(int fd, char *path)
{
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return inside(path);
}

static int of_name(int folder, const char *name, char *path)
{
    char base[PATH_MAX] = "";
    if (name[0] != '/') {
        if (folder == AT_FDCWD ? getcwd(base, sizeof base) == NULL : (of_fd(folder, base), base[0] == 0))
            return 0;
    }
    snprintf(path, PATH_MAX, base[0] ? "%s/%s" : "%s%s", base, name);
    return inside(path);
}

/* Moves all entries of the folder to FOLDER.gone, which is there. */
static void vanish(void)
{
    char from[PATH_MAX + 512], to[PATH_MAX + 512];
    DIR *folder = opendir(root);
    for (struct dirent *entry; folder && (entry = readdir(folder));) {
        if (entry->d_name[0] == '.' || strcmp(entry->d_name, "tmp") == 0)
            continue;
        snprintf(from, sizeof from, "%s/%s", root, entry->d_name);
        snprintf(to, sizeof to, "%s.gone/%s", root, entry->d_name);
        syscall(SYS_rename, from, to);
    }
    if (folder)
        closedir(folder);
}

static enum verdict count(const char *what, const char *path, int needs_room)
{
    if (chosen == BAD)
        return GO_ON;
    long number = ++events;
    if (log_fd >= 0) {
        char line[PATH_MAX + 64];
        int length = snprintf(line, sizeof line, "%ld %s %s\n", number, what, path + root_length);
        syscall(SYS_write, log_fd, line, length);
    }
    if (chosen == KILL && number == target)
        return DIE;
    if (chosen == GONE && number == target)
        vanish();
    return chosen == FULL && needs_room && number >= target ? NO_ROOM : GO_ON;
}

/* Whether a read fails. */
static int is_bad(int fd)
{
    static char bad[PATH_MAX];
    char path[PATH_MAX];
    if (!armed || chosen != BAD || fd <= 2 || !of_fd(fd, path))
        return 0;
    long number = ++events;
    if (log_fd >= 0) {
        char line[PATH_MAX + 64];
        int length = snprintf(line, sizeof line, "%ld read %s\n", number, path + root_length);
        syscall(SYS_write, log_fd, line, length);
    }
    if (number == target)
        strcpy(bad, path);
    if (strcmp(path, bad) != 0)
        return 0;
    errno = EIO;
    return 1;
}

static int no_room(void)
{
    errno = ENOSPC;
    return -1;
}

static void die(void)
{
    kill(getpid(), SIGKILL);
    for (;;)
        pause();
}

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) \
        real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

#define ACT(what, is_ours, path, needs_room) \
    do { \
        if (armed && (is_ours)) { \
            enum verdict verdict = count(what, path, needs_room); \
            if (verdict == DIE) \
                die(); \
            if (verdict == NO_ROOM) \
                return no_room(); \
        } \
    } while (0)

#define OPEN(name) \
    int name(const char *file, int flags, ...) \
    { \
        REAL(name); \
        va_list more; \
        va_start(more, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0; \
        va_end(more); \
        char path[PATH_MAX]; \
        ACT("create", flags & (O_CREAT | O_TRUNC) && of_name(AT_FDCWD, file, path), path, flags & O_CREAT); \
        return real(file, flags, mode); \
    }

#define OPENAT(name) \
    int name(int folder, const char *file, int flags, ...) \
    { \
        REAL(name); \
        va_list more; \
        va_start(more, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0; \
        va_end(more); \
        char path[PATH_MAX]; \
        ACT("create", flags & (O_CREAT | O_TRUNC) && of_name(folder, file, path), path, flags & O_CREAT); \
        return real(folder, file, flags, mode); \
    }

#define FOPEN(name) \
    FILE *name(const char *file, const char *how) \
    { \
        REAL(name); \
        char path[PATH_MAX]; \
        if (armed && how[0] != 'r' && of_name(AT_FDCWD, file, path)) { \
            enum verdict verdict = count("create", path, 1); \
            if (verdict == DIE) \
                die(); \
            if (verdict == NO_ROOM) { \
                errno = ENOSPC; \
                return NULL; \
            } \
        } \
        return real(file, how); \
    }

#define RESIZE(name, type) \
    int name(int fd, type size) \
    { \
        REAL(name); \
        char path[PATH_MAX]; \
        ACT("resize", of_fd(fd, path), path, 1); \
        return real(fd, size); \
    }

OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
FOPEN(fopen)
FOPEN(fopen64)
RESIZE(ftruncate, off_t)
RESIZE(ftruncate64, off64_t)

#define READ(name, arguments, handed) \
    ssize_t name arguments \
    { \
        REAL(name); \
        return is_bad(fd) ? -1 : real handed; \
    }

READ(read, (int fd, void *content, size_t size), (fd, content, size))
READ(pread, (int fd, void *content, size_t size, off_t offset), (fd, content, size, offset))
READ(pread64, (int fd, void *content, size_t size, off64_t offset), (fd, content, size, offset))

size_t fread(void *content, size_t size, size_t number, FILE *stream)
{
    REAL(fread);
    return is_bad(fileno(stream)) ? 0 : real(content, size, number, stream);
}

ssize_t write(int fd, const void *content, size_t size)
{
    REAL(write);
    char path[PATH_MAX];
    if (armed && fd > 2 && fd != log_fd && of_fd(fd, path)) {
        enum verdict verdict = count("write", path, 1);
        if (verdict == DIE) {
            real(fd, content, size / 2);
            die();
        }
        if (verdict == NO_ROOM)
            return no_room();
    }
    return real(fd, content, size);
}

size_t fwrite(const void *content, size_t size, size_t number, FILE *stream)
{
    REAL(fwrite);
    char path[PATH_MAX];
    if (armed && fileno(stream) > 2 && of_fd(fileno(stream), path)) {
        enum verdict verdict = count("write", path, 1);
        if (verdict == DIE) {
            real(content, size, number / 2, stream);
            fflush(stream);
            die();
        }
        if (verdict == NO_ROOM) {
            errno = ENOSPC;
            return 0;
        }
    }
    return real(content, size, number, stream);
}

ssize_t sendfile(int to, int from, off_t *offset, size_t size)
{
    REAL(sendfile);
    char path[PATH_MAX];
    ACT("write", of_fd(to, path), path, 1);
    return real(to, from, offset, size);
}

ssize_t sendfile64(int to, int from, off64_t *offset, size_t size)
{
    REAL(sendfile64);
    char path[PATH_MAX];
    ACT("write", of_fd(to, path), path, 1);
    return real(to, from, offset, size);
}

int fsync(int fd)
{
    char path[PATH_MAX];
    ACT("sync", of_fd(fd, path), path, 1);
    return 0; /* only a power cut would tell the difference, and it takes most of the time */
}

int rename(const char *old, const char *new)
{
    REAL(rename);
    static char freed[PATH_MAX]; /* the last name that something was moved from: moving it back needs no room */
    char path[PATH_MAX], from[PATH_MAX];
    ACT("rename", of_name(AT_FDCWD, new, path), path, strcmp(path, freed) != 0);
    int done = real(old, new);
    if (done == 0 && armed && of_name(AT_FDCWD, old, from))
        strcpy(freed, from);
    return done;
}

int mkdir(const char *name, mode_t mode)
{
    REAL(mkdir);
    char path[PATH_MAX];
    ACT("create", of_name(AT_FDCWD, name, path), path, 1);
    return real(name, mode);
}

int unlink(const char *name)
{
    REAL(unlink);
    char path[PATH_MAX];
    ACT("remove", of_name(AT_FDCWD, name, path), path, 0);
    return real(name);
}

int unlinkat(int folder, const char *name, int flags)
{
    REAL(unlinkat);
    char path[PATH_MAX];
    ACT("remove", of_name(folder, name, path), path, 0);
    return real(folder, name, flags);
}

int rmdir(const char *name)
{
    REAL(rmdir);
    char path[PATH_MAX];
    ACT("remove", of_name(AT_FDCWD, name, path), path, 0);
    return real(name);
}

static int set_back(void) { return armed && chosen == CLOCK && events >= target; }

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int failed = (int)syscall(SYS_clock_gettime, clock, now);
    if (!failed && clock == CLOCK_REALTIME && set_back())
        now->tv_sec -= DAY_S;
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    int failed = (int)syscall(SYS_gettimeofday, now, zone);
    if (!failed && set_back())
        now->tv_sec -= DAY_S;
    return failed;
}

time_t time(time_t *place)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (place)
        *place = now.tv_sec;
    return now.tv_sec;
}
