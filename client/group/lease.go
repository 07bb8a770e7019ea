package group

import (
	"context"
	"errors"
	"time"

	"github.com/cantuslog/cantus/client"
)

var errLate = errors.New("group: the renewal took too long to count")

// cursor is what a lease needs of one.
type cursor interface {
	Get(ctx context.Context) (client.Position, error)
	Set(ctx context.Context, txid uint64) (client.Position, error)
}

// lease is the right to something, as one member sees it. It has no goroutine:
// look and keep are called every third of a lease or so, by one at a time.
type lease struct {
	cursor    cursor
	duration  time.Duration
	now       func() time.Time
	byReading bool // nobody needs to see it renewed: to hold it is to find it one's own

	seen           client.Position // when it was last looked at
	unchangedSince time.Time       // that it is seen so
	ownTime        time.Time       // the time of the own last set; zero: not claimed
	claimedAt      time.Time       // when the claim was answered
	heldUntil      time.Time       // held up to here; zero: not held
}

func newLease(k cursor, term time.Duration) *lease {
	return &lease{cursor: k, duration: term, now: time.Now}
}

// round is how long one look or renewal may take to count.
func (l *lease) renewLimit() time.Duration { return l.duration / 3 }

// held reports whether it is held now.
func (l *lease) held() bool { return !l.heldUntil.IsZero() && l.now().Before(l.heldUntil) }

// alive reports whether somebody, oneself included, holds or claims it, as far
// as was seen.
func (l *lease) taken() bool { return l.seen.Txid != 0 && l.now().Sub(l.unchangedSince) < l.duration }

// look reads the cursor.
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

// set sets the cursor and tells its time.
func (l *lease) set(ctx context.Context) error {
	pos, err := l.cursor.Set(ctx, 1)
	if err != nil {
		return err
	}
	l.ownTime = pos.Time
	l.observe(pos)
	return nil
}

// lose forgets claim and hold.
func (l *lease) drop() { l.ownTime, l.heldUntil = time.Time{}, time.Time{} }

// keep does one step towards holding the lease, or towards going on holding
// it. An empty partition's is never held.
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
		l.drop() // to who set it last
		return nil
	case l.heldUntil.IsZero() && began.Sub(l.claimedAt) < l.duration:
		return nil // others may come yet
	case l.byReading:
		l.heldUntil = began.Add(l.duration * 9 / 10) // a claimant that sets it after began waits for longer
		return nil
	}
	return l.renew(ctx, began)
}

// claim sets the cursor if it is free.
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

// renew sets the cursor, having found it with the own time since began. It
// counts only if both took no longer than a round: a set that came late may
// have come behind another's claim.
func (l *lease) renew(ctx context.Context, began time.Time) error {
	if err := l.set(ctx); err != nil {
		return err
	}
	if l.now().Sub(began) > l.renewLimit() {
		if l.heldUntil.IsZero() {
			l.claimedAt = l.now() // not held yet: as if claimed only now
		}
		return errLate
	}
	l.heldUntil = began.Add(l.duration * 9 / 10)
	return nil
}

// release gives it to whoever wants it. What it was held for has to be over.
func (l *lease) release(ctx context.Context) error {
	if l.ownTime.IsZero() {
		return nil
	}
	held := l.held()
	l.drop()
	if !held {
		return nil // somebody else's by now, or a claim that runs out
	}
	_, err := l.cursor.Set(ctx, 0)
	return err
}
