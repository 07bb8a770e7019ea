package subjects

import (
	"strconv"
	"strings"
)

// ParseAtomic parses the value of [HeaderAtomic] that a transaction has on the
// feed and in reads. It returns the first and the last txid of the atomic
// batch, of which the transaction must be one.
func ParseAtomic(value string, txid uint64) (first, last uint64, err error) {
	from, to, _ := strings.Cut(value, "-")
	first, last = atomicTxid(from), atomicTxid(to)
	if first == 0 || last == 0 || CheckAtomic(first, last, txid) != nil {
		return 0, 0, badf("header %s is %q: it is the first and the last txid of an atomic batch that transaction %d is part of, such as 813-815",
			HeaderAtomic, clip(value), txid)
	}
	return first, last, nil
}

// atomicTxid parses a txid as a node writes it; 0 if it is none.
func atomicTxid(s string) uint64 {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || s[0] == '0' {
		return 0
	}
	return n
}

// CheckAtomic returns an error unless an atomic batch from first to last can be
// one, and txid is part of it.
func CheckAtomic(first, last, txid uint64) error {
	switch {
	case first == 0 || last <= first:
		return badf("an atomic batch from %d to %d: it has two transactions at least, and txids begin at 1", first, last)
	case last-first >= MaxBatch:
		return badf("an atomic batch from %d to %d: it has at most %d transactions", first, last, MaxBatch)
	case txid < first || txid > last:
		return badf("transaction %d is not part of an atomic batch from %d to %d", txid, first, last)
	}
	return nil
}
