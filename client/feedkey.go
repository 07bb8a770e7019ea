package client

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cantuslog/cantus/subjects"
)

// feedKey is the key that messages of the feed are verified with: the one of
// Options, or what cantus.info says.
type feedKey struct {
	mu      sync.Mutex
	key     ed25519.PublicKey // nil while it is not known
	pinned  bool
	asking  bool
	asked   time.Time // when it was last answered
	lastErr error     // there is no answer; nil if there is one, or it is too early to say
}

func (k *feedKey) get() ed25519.PublicKey {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.key
}

// trouble returns why there is no key.
func (k *feedKey) fetchError() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.lastErr
}

// askFeedKey has the key asked for, unless it is pinned. A message that an answer does
// not verify may be of a cluster whose secret was changed since; but any message
// may be forged, so an answer stands for an AttemptTimeout.
func (c *Client) askFeedKey() {
	k := &c.feedKey
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.pinned || k.asking || !k.asked.IsZero() && time.Since(k.asked) < c.opts.AttemptTimeout {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed == nil {
		k.asking = true
		c.running.Go(c.fetchFeedKey)
	}
}

// fetchFeedKey asks for the key until there is an answer or the client is closed.
func (c *Client) fetchFeedKey() {
	ctx, cancel := c.untilClosed()
	defer cancel()
	for tries := 1; ; tries++ {
		err := c.fetchFeedKeyOnce(ctx)
		if err == nil {
			return
		}
		c.feedKey.mu.Lock()
		c.feedKey.lastErr = err
		c.feedKey.mu.Unlock()
		select {
		case <-time.After(c.backoff(tries)):
		case <-ctx.Done():
		}
		if ctx.Err() != nil || errors.Is(err, ErrClosed) {
			c.feedKey.mu.Lock()
			c.feedKey.asking = false
			c.feedKey.mu.Unlock()
			return
		}
	}
}

func (c *Client) fetchFeedKeyOnce(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.opts.AttemptTimeout)
	defer cancel()
	info, err := c.clusterInfo(ctx)
	if err != nil {
		return err
	}
	key, err := subjects.ParseFeedKey(info.FeedKey)
	if err != nil {
		return fmt.Errorf("cluster info: feed_key: %w", err)
	}
	k := &c.feedKey
	k.mu.Lock()
	changed := !bytes.Equal(k.key, key)
	k.key, k.lastErr, k.asked, k.asking = key, nil, time.Now(), false
	k.mu.Unlock()
	if changed {
		_, streams := c.sendersAndStreams()
		for _, s := range streams {
			s.onFeedKey()
		}
	}
	return nil
}
