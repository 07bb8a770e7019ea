package main

import (
	"fmt"

	"github.com/cantuslog/cantus/subjects"
)

// atomicRange is the txids of the atomic batch that a transaction is part of.
type atomicRange struct {
	First uint64 `json:"first"`
	Last  uint64 `json:"last"`
}

func (a *atomicRange) String() string { return fmt.Sprintf("%d-%d", a.First, a.Last) }

// size returns how many transactions the atomic batch has.
func (a *atomicRange) size() uint64 { return a.Last - a.First + 1 }

// setAtomic sets the atomic batch from the value of a header.
func (t *transaction) setAtomic(value string) error {
	if t.Atomic != nil {
		return fmt.Errorf("transaction %d: header %s is given twice", t.Txid, subjects.HeaderAtomic)
	}
	first, last, err := subjects.ParseAtomic(value, t.Txid)
	if err != nil {
		return fmt.Errorf("the node sent a message that is not a transaction: %w", plain(err))
	}
	t.Atomic = &atomicRange{first, last}
	return nil
}

// checkAtomic returns an error unless the atomic batch of a line can be one,
// and the line's txid, if it has one, is in it.
func (t *transaction) checkAtomic() error {
	if t.Atomic == nil {
		return nil
	}
	txid := t.Txid
	if txid == 0 {
		txid = t.Atomic.First
	}
	if err := subjects.CheckAtomic(t.Atomic.First, t.Atomic.Last, txid); err != nil {
		return fmt.Errorf(`%w; "atomic" has the first and the last txid of an atomic batch, such as {"first":813,"last":815}`, plain(err))
	}
	return nil
}

// sameAtomic reports whether two transactions are in the same atomic batch.
func (t *transaction) sameAtomic(o *transaction) bool {
	return t.Atomic != nil && o.Atomic != nil && *t.Atomic == *o.Atomic
}
