package lockmgr

import "syscall"

// advise asks for huge pages. The kernel may refuse, which does no harm.
func advise(b []byte) { _ = syscall.Madvise(b, syscall.MADV_HUGEPAGE) }
