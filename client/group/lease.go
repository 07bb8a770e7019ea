package group

import (
	"context"
	"errors"
	"time"

	"github.com/cantuslog/cantus/client"
)

var errLate = errors.New("group: the renewal took too long")

// cursor is the part of a client.Cursor that a lease uses.
type cursor interface {
	Get(ctx context.Context) (client.Position, error)
	Set(ctx context.Context, txid uint64) (client.Position, error)
}

// lease is the right to handle something, as one member sees it. It has no
// goroutine: read and step are called about every third of a lease's duration,
// not concurrently.
type lease struct {
	cursor    cursor
	duration  time.Duration
	now       func() time.Time
	byReading bool // hold it by reading the cursor: nobody needs to see renewals

	seen           client.Position // position when it was last read
	unchangedSince time.Time       // since when seen is the same
	ownTime        time.Time       // time of this member's last set; zero: not claimed
	claimedAt      time.Time       // when the claim was answered
	heldUntil      time.Time       // zero: not held
}

func newLease(k cursor, duration time.Duration) *lease {
	return &lease{cursor: k, duration: duration, now: time.Now}
}

// renewLimit returns how long a read and a renewal may take together to be
// valid.
func (l *lease) renewLimit() time.Duration { return l.duration / 3 }

// held reports whether the lease is held now.
func (l *lease) held() bool { return !l.heldUntil.IsZero() && l.now().Before(l.heldUntil) }

// taken reports whether any member, this one included, appears to hold or claim
// the lease.
func (l *lease) taken() bool { return l.seen.Txid != 0 && l.now().Sub(l.unchangedSince) < l.duration }

// read reads the cursor.
func (l *lease) read(ctx context.Context) error {
	pos, err := l.cursor.Get(ctx)
	if err != nil {
		return err
	}
	l.observe(pos)
	return nil
}

func (l *lease) observe(pos client.Position) {
	if pos.Txid != l.seen.Txid || !pos.Time.Equal(l.seen.Time) || l.unchangedSince.IsZero() {
		l.unchangedSince = l.now()
	}
	l.seen = pos
}

// set sets the cursor and notes its time.
func (l *lease) set(ctx context.Context) error {
	pos, err := l.cursor.Set(ctx, 1)
	if err != nil {
		return err
	}
	l.ownTime = pos.Time
	l.observe(pos)
	return nil
}

// drop forgets a claim.
func (l *lease) drop() { l.ownTime, l.heldUntil = time.Time{}, time.Time{} }

// step makes one step towards holding the lease, or towards holding it longer.
// The lease of an empty partition is never held.
func (l *lease) step(ctx context.Context) error {
	began := l.now()
	if !l.heldUntil.IsZero() && !began.Before(l.heldUntil) {
		l.drop()
	}
	if err := l.read(ctx); err != nil {
		return err
	}
	if l.seen.HighWaterMark == 0 {
		return nil // no cursor can be set there
	}
	switch {
	case l.ownTime.IsZero():
		return l.claim(ctx)
	case l.seen.Txid == 0 || !l.seen.Time.Equal(l.ownTime):
		l.drop() // another member has set it
		return nil
	case l.heldUntil.IsZero() && began.Sub(l.claimedAt) < l.duration:
		return nil // others may still set it
	case l.byReading:
		l.heldUntil = began.Add(l.duration * 9 / 10) // a claimant that sets it after began waits for longer
		return nil
	}
	return l.renew(ctx, began)
}

// claim sets the cursor if the lease is free.
func (l *lease) claim(ctx context.Context) error {
	if l.taken() {
		return nil
	}
	if err := l.set(ctx); err != nil {
		return err
	}
	l.claimedAt = l.now()
	return nil
}

// renew sets the cursor. The caller has read it since began, and found its own
// time. The renewal is valid only if both took no longer than renewLimit: a set
// that arrived late may have replaced another member's claim.
func (l *lease) renew(ctx context.Context, began time.Time) error {
	if err := l.set(ctx); err != nil {
		return err
	}
	if l.now().Sub(began) > l.renewLimit() {
		if l.heldUntil.IsZero() {
			l.claimedAt = l.now() // not held yet: the claim starts again
		}
		return errLate
	}
	l.heldUntil = began.Add(l.duration * 9 / 10)
	return nil
}

// release makes the lease free. What it protected must have ended.
func (l *lease) release(ctx context.Context) error {
	if l.ownTime.IsZero() {
		return nil
	}
	held := l.held()
	l.drop()
	if !held {
		return nil // another member has it by now, or the claim expires
	}
	_, err := l.cursor.Set(ctx, 0)
	return err
}
