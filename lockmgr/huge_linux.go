package lockmgr

import "syscall"

// advise asks for huge pages. A kernel that has none, or is told not to give
// them, may refuse: nothing is lost.
func advise(b []byte) { _ = syscall.Madvise(b, syscall.MADV_HUGEPAGE) }
