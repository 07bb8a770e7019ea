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

// feedKey is the key that verifies messages of the feed: that of Options, or
// the one that cantus.info returned.
type feedKey struct {
	mu      sync.Mutex
	key     ed25519.PublicKey // nil while unknown
	pinned  bool
	asking  bool
	asked   time.Time // when it was last answered
	lastErr error     // of the last request; nil if it succeeded, or none has ended
}

func (k *feedKey) get() ed25519.PublicKey {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.key
}

// fetchError returns the error of the last request for the key. It is nil if
// the key is known or no request has ended.
func (k *feedKey) fetchError() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.lastErr
}

// askFeedKey starts to fetch the key, unless it is configured. If a message
// does not verify with the known key, the cluster's secret may have changed;
// but messages can be forged, so a key is fetched at most once per
// AttemptTimeout.
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

// fetchFeedKey requests the key until it gets an answer or the client is
// closed.
func (c *Client) fetchFeedKey() {
	ctx, cancel := c.untilClosed()
	defer cancel()
	for attempts := 1; ; attempts++ {
		err := c.fetchFeedKeyOnce(ctx)
		if err == nil {
			return
		}
		c.feedKey.mu.Lock()
		c.feedKey.lastErr = err
		c.feedKey.mu.Unlock()
		select {
		case <-time.After(c.backoff(attempts)):
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
