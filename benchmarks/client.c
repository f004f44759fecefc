/* The load: system calls in a loop, from one or more processes, without an interpreter's own time in the way.
 *
 *   client stat|open|read|write PATH SECONDS CLIENTS [SIZE]   ns of wall time per operation, all clients together
 *   client create|lookup|unlink DIRECTORY COUNT               ns per file
 *   client mknod DIRECTORY COUNT                              the same for empty files, a thousand in a directory
 *   client together PATH COUNT                                ns until COUNT reads, each from a thread of its own, are done
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void fail(const char *what) {
    fprintf(stderr, "client: %s: %s\n", what, strerror(errno));
    exit(1);
}

static long now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000L + t.tv_nsec;
}

struct shared {
    int ready, go;
    long operations, last_ns;
};

static void *buffer_of(size_t size) {
    void *buffer = NULL;
    if (posix_memalign(&buffer, 4096, size))
        fail("memory");
    memset(buffer, 'x', size);
    return buffer;
}

static void one(char kind, const char *path, int fd, char *buffer, size_t size, long turn) {
    struct stat st;
    off_t offset = (off_t)(turn * 7919 % 1000) * (1 << 20);
    if (kind == 's' && stat(path, &st))
        fail("stat");
    if (kind == 'o') {
        int opened = open(path, O_RDONLY);
        if (opened < 0 || close(opened))
            fail("open");
    }
    if (kind == 'r' && pread(fd, buffer, size, offset) != (ssize_t)size)
        fail("read");
    if (kind == 'w' && pwrite(fd, buffer, size, offset) != (ssize_t)size)
        fail("write");
}

static void load(char kind, const char *path, double seconds, size_t size, struct shared *shared, int clients) {
    int fd = -1;
    char *buffer = buffer_of(size ? size : 4096);
    if ((kind == 'r' || kind == 'w') && (fd = open(path, O_RDWR | O_DIRECT)) < 0)
        fail("open");
    for (long turn = 0; turn < 20; turn++)
        one(kind, path, fd, buffer, size, turn);
    __atomic_add_fetch(&shared->ready, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&shared->ready, __ATOMIC_SEQ_CST) < clients)
        usleep(100);
    long end = now_ns() + (long)(seconds * 1e9), turn = 0;
    do {
        for (int i = 0; i < 8; i++)
            one(kind, path, fd, buffer, size, turn++);
    } while (now_ns() < end);
    __atomic_add_fetch(&shared->operations, turn, __ATOMIC_SEQ_CST);
    exit(0);
}

static void run_load(char **argv, int argc) {
    struct shared *shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    double seconds = atof(argv[3]);
    int clients = atoi(argv[4]), status, failed = 0;
    for (int i = 0; i < clients; i++)
        if (fork() == 0) {
            alarm((unsigned)seconds + 20);
            load(argv[1][0], argv[2], seconds, argc > 5 ? (size_t)atol(argv[5]) : 0, shared, clients);
        }
    while (wait(&status) > 0)
        failed |= status;
    if (failed)
        exit(1);
    printf("%.0f\n", seconds * 1e9 / (double)shared->operations);
}

static void run_files(char kind, const char *directory, int count) {
    char path[4096], *data = buffer_of(4096);
    struct stat st;
    long start = now_ns();
    for (int i = 0; i < count; i++) {
        snprintf(path, sizeof path, "%s/file%d", directory, i);
        if (kind == 'c') {
            int fd = open(path, O_CREAT | O_EXCL | O_WRONLY, 0644);
            if (fd < 0 || write(fd, data, 4096) != 4096 || close(fd))
                fail("create");
        } else if (kind == 'l' ? stat(path, &st) || st.st_size != 4096 : unlink(path)) {
            fail(path);
        }
    }
    printf("%.0f\n", (double)(now_ns() - start) / count);
}

static void run_empty_files(const char *directory, int count) {
    char path[4096];
    long start = now_ns();
    for (int i = 0; i < count; i++) {
        if (i % 1000 == 0) {
            snprintf(path, sizeof path, "%s/dir%d", directory, i / 1000);
            if (mkdir(path, 0755))
                fail(path);
        }
        snprintf(path, sizeof path, "%s/dir%d/file%d", directory, i / 1000, i);
        if (mknod(path, S_IFREG | 0644, 0))
            fail(path);
    }
    printf("%.0f\n", (double)(now_ns() - start) / count);
}

static pthread_barrier_t barrier;

static void *slow_read(void *path) {
    char buffer[4096];
    int fd = open(path, O_RDONLY);
    if (fd < 0)
        fail("open");
    pthread_barrier_wait(&barrier);
    if (read(fd, buffer, sizeof buffer) != sizeof buffer)
        fail("read");
    close(fd);
    return NULL;
}

static void run_together(char *path, int count) {
    pthread_t *threads = calloc((size_t)count, sizeof *threads);
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, 64 << 10);
    pthread_barrier_init(&barrier, NULL, (unsigned)count + 1);
    for (int i = 0; i < count; i++)
        if (pthread_create(&threads[i], &attr, slow_read, path))
            fail("thread");
    long start = now_ns();
    pthread_barrier_wait(&barrier);
    start = now_ns();
    for (int i = 0; i < count; i++)
        pthread_join(threads[i], NULL);
    printf("%.0f\n", (double)(now_ns() - start));
}

int main(int argc, char **argv) {
    alarm(900);
    if (argc >= 5 && strchr("sorw", argv[1][0]))
        run_load(argv, argc);
    else if (argc == 4 && !strcmp(argv[1], "together"))
        run_together(argv[2], atoi(argv[3]));
    else if (argc == 4 && argv[1][0] == 'm')
        run_empty_files(argv[2], atoi(argv[3]));
    else if (argc == 4 && strchr("clu", argv[1][0]))
        run_files(argv[1][0], argv[2], atoi(argv[3]));
    else
        return 2;
    return 0;
}
