/* A null filesystem on libfuse's low-level API and its multi-threaded loop: nothing is cached, reads give the same bytes. */
#define FUSE_USE_VERSION 312
#include <fuse_lowlevel.h>
#include <string.h>
#include <unistd.h>

static char bytes[1 << 20];

static void fill(fuse_ino_t ino, struct stat *st) {
    st->st_ino = ino;
    st->st_mode = ino == FUSE_ROOT_ID ? S_IFDIR | 0755 : S_IFREG | 0644;
    st->st_nlink = 1;
    st->st_size = ino == FUSE_ROOT_ID ? 0 : 1 << 30;
}

static void do_lookup(fuse_req_t req, fuse_ino_t parent, const char *name) {
    struct fuse_entry_param e = {.ino = strcmp(name, "slow") ? 2 : 3};
    (void)parent;
    fill(e.ino, &e.attr);
    fuse_reply_entry(req, &e);
}

static void do_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi) {
    struct stat st = {0};
    (void)fi;
    fill(ino, &st);
    fuse_reply_attr(req, &st, 0);
}

static void do_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi) {
    (void)ino;
    fi->direct_io = 1;
    fuse_reply_open(req, fi);
}

static void do_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset, struct fuse_file_info *fi) {
    (void)offset, (void)fi;
    if (ino == 3)
        usleep(100000);
    fuse_reply_buf(req, bytes, size);
}

static void do_write(fuse_req_t req, fuse_ino_t ino, const char *data, size_t size, off_t offset, struct fuse_file_info *fi) {
    (void)ino, (void)data, (void)offset, (void)fi;
    fuse_reply_write(req, size);
}

static const struct fuse_lowlevel_ops operations = {
    .lookup = do_lookup, .getattr = do_getattr, .open = do_open, .read = do_read, .write = do_write};

int main(int argc, char **argv) {
    memset(bytes, 'x', sizeof bytes);
    char *words[] = {argv[0], "-o", "fsname=null"};
    struct fuse_args args = FUSE_ARGS_INIT(3, words);
    struct fuse_session *session = fuse_session_new(&args, &operations, sizeof operations, NULL);
    if (argc != 2 || !session || fuse_set_signal_handlers(session) || fuse_session_mount(session, argv[1]))
        return 1;
    int status = fuse_session_loop_mt(session, NULL);
    fuse_session_unmount(session);
    return status != 0;
}
