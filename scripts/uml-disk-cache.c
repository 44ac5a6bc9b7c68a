/*
 * Gives the disks of a user-mode Linux guest a volatile write cache, so that a power cut can lose what was never flushed.
 *
 * UML writes its disks into host files, and what is in the host's page cache outlives the guest. Then a write without the
 * flush that must follow it, the very mistake to be found, would always survive. Preloaded into UML, this file keeps, for
 * every image named in UML_VOLATILE (paths separated by ':'), what each write overwrote in IMAGE.undo until the guest
 * flushes that disk; after the guest has been killed, scripts/power-cut-lose.py takes unflushed writes back.
 *
 * A record is two little-endian u64 (offset, length) and the old bytes; it is in the file before the write begins. A flush
 * empties the file by one system call.
 *
 * UML 6.1 drops the flush itself: its I/O thread works through the pieces of a request, and a flush has none, so that no
 * system call ever shows it. It is seen where that thread receives its requests: it reads pointers to them from a pipe, and
 * one without pieces, for one of our disks, is a flush. All writes that it covers were answered before it was sent, so they
 * were made by this very thread before. `power-cut --self-test` fails if the layout below is not the kernel's.
 *
 * That thread has a stack of one page: hence static buffers. It is the only one here that does disk I/O: hence no locks.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { DISKS_MAX = 4, PIECE = 1 << 16 };

static struct disk {
	dev_t device;
	ino_t inode;
	int undo;
} disks[DISKS_MAX];
static int disk_count = -1;

static void find_disks(void)
{
	static char paths[4096], undo[4096];
	const char *named = getenv("UML_VOLATILE");
	struct stat status;

	disk_count = 0;
	if (!named || strlen(named) >= sizeof(paths))
		return;
	strcpy(paths, named);
	for (char *rest = paths, *path; (path = strsep(&rest, ":")) && disk_count < DISKS_MAX;) {
		if (strlen(path) + 6 > sizeof(undo) || stat(path, &status) < 0)
			continue;
		strcat(strcpy(undo, path), ".undo");
		disks[disk_count].device = status.st_dev;
		disks[disk_count].inode = status.st_ino;
		disks[disk_count].undo = open(undo, O_WRONLY | O_CREAT | O_APPEND | O_TRUNC | O_CLOEXEC, 0600);
		if (disks[disk_count].undo < 0)
			abort(); /* better no test than one that proves nothing */
		disk_count++;
	}
}

static struct disk *disk_of(int fd)
{
	struct stat status;

	if (disk_count < 0)
		find_disks();
	if (disk_count == 0 || fstat(fd, &status) < 0)
		return NULL;
	for (int i = 0; i < disk_count; i++)
		if (disks[i].inode == status.st_ino && disks[i].device == status.st_dev)
			return &disks[i];
	return NULL;
}

static void keep_old(const struct disk *disk, int fd, off64_t offset, uint64_t length)
{
	static unsigned char old[PIECE];

	while (length > 0) {
		uint64_t piece = length < PIECE ? length : PIECE;
		ssize_t got = syscall(SYS_pread64, fd, old, piece, offset);

		if (got < 0)
			abort();
		memset(old + got, 0, piece - (uint64_t)got);

		uint64_t head[2] = { (uint64_t)offset, piece };
		struct iovec parts[2] = { { head, sizeof(head) }, { old, piece } };

		if (syscall(SYS_writev, disk->undo, parts, 2) != (long)(sizeof(head) + piece))
			abort();
		offset += (off64_t)piece;
		length -= piece;
	}
}

ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t offset)
{
	const struct disk *disk = disk_of(fd);

	if (disk)
		keep_old(disk, fd, offset, length);
	return syscall(SYS_pwrite64, fd, bytes, length, offset);
}

int fallocate64(int fd, int mode, off64_t offset, off64_t length)
{
	const struct disk *disk = disk_of(fd);

	if (disk)
		keep_old(disk, fd, offset, (uint64_t)length);
	return (int)syscall(SYS_fallocate, fd, mode, offset, length);
}

/* arch/um/drivers/ubd_kern.c of Linux 6.1 */
struct io_thread_req {
	void *req;
	int fds[2];
	unsigned long offsets[2];
	unsigned long long offset;
	int sectorsize;
	int error;
	int desc_cnt;
};
enum { REQUESTS_READ = 64 * sizeof(struct io_thread_req *) }; /* what it asks the pipe for */

static long main_process;

__attribute__((constructor)) static void remember_process(void)
{
	main_process = syscall(SYS_getpid);
}

ssize_t read(int fd, void *bytes, size_t length)
{
	ssize_t got = syscall(SYS_read, fd, bytes, length);

	/* The I/O thread is a process to the host. The main one reads the same pointers as answers: those are not looked at. */
	if (got <= 0 || length != REQUESTS_READ || !getenv("UML_VOLATILE") || syscall(SYS_getpid) == main_process)
		return got;

	struct io_thread_req **requests = bytes;

	for (size_t i = 0; i < (size_t)got / sizeof(*requests); i++) {
		const struct disk *disk = requests[i]->desc_cnt == 0 ? disk_of(requests[i]->fds[0]) : NULL;

		if (disk && ftruncate(disk->undo, 0) < 0)
			abort();
	}
	return got;
}
