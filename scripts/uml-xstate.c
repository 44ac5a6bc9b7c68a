/*
 * Lets Debian 12's user-mode Linux run on processors with a register state larger than it knows (Intel AMX).
 *
 * UML 6.1 saves and restores its processes' registers with PTRACE_GETREGSET and PTRACE_SETREGSET of NT_X86_XSTATE, from a
 * buffer of fixed size: 2696 bytes, enough up to AVX-512 and PKRU. Reading into a short buffer is allowed; writing from one
 * is EFAULT on a host whose state is larger, and the guest's init dies before its first instruction. Preloaded, this
 * ptrace() then completes a short write with what the process has in the rest of its state. A guest process using AMX itself
 * would not have its tiles switched: nothing in the tests does.
 *
 * Built and preloaded by need_uml in lib.sh.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { STATE_MAX = 65536 };

static long whole_state(long pid, void *data)
{
	/* Not on the stack: it is one of UML's kernel stacks, which are small. UML has one processor and no preemption. */
	static unsigned char state[STATE_MAX];
	struct iovec whole = { state, sizeof(state) };
	const struct iovec *given = data;
	long result = syscall(SYS_ptrace, PTRACE_SETREGSET, pid, NT_X86_XSTATE, data);

	/* Not by errno: a signal handler of UML may have run since, and changed it. */
	if (result == 0)
		return 0;
	if (syscall(SYS_ptrace, PTRACE_GETREGSET, pid, NT_X86_XSTATE, &whole) < 0)
		return -1;
	memcpy(state, given->iov_base, given->iov_len < whole.iov_len ? given->iov_len : whole.iov_len);
	return syscall(SYS_ptrace, PTRACE_SETREGSET, pid, NT_X86_XSTATE, &whole);
}

long ptrace(enum __ptrace_request request, ...)
{
	va_list arguments;
	long pid, address;
	void *data;

	va_start(arguments, request);
	pid = va_arg(arguments, pid_t);
	address = (long)va_arg(arguments, void *);
	data = va_arg(arguments, void *);
	va_end(arguments);

	if (request == PTRACE_SETREGSET && address == NT_X86_XSTATE)
		return whole_state(pid, data);
	if (request == PTRACE_PEEKTEXT || request == PTRACE_PEEKDATA || request == PTRACE_PEEKUSER) {
		/* The system call stores the word; the library function returns it. */
		long word = 0;
		long result = syscall(SYS_ptrace, request, pid, address, &word);

		return result < 0 ? result : word;
	}
	return syscall(SYS_ptrace, request, pid, address, data);
}
