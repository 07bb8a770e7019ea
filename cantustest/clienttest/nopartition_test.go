package client_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/cantuslog/cantus/client"
)

// Nobody answers for a partition that does not exist. Calls return an error
// instead of waiting forever, or for the whole timeout.
func TestAPartitionThatDoesNotExist(t *testing.T) {
	_, known := newLog(t)
	for name, ask := range map[string]func(context.Context, *client.Client) error{
		"follow": func(ctx context.Context, c *client.Client) error {
			return c.Follow(ctx, map[int]uint64{9: 0}, func(context.Context, *client.Transaction) error { return nil }, client.FollowOptions{})
		},
		"all": func(ctx context.Context, c *client.Client) (err error) {
			for _, err = range c.All(ctx, 9, 0, client.FollowOptions{}) {
				break
			}
			return err
		},
		"append": func(ctx context.Context, c *client.Client) error {
			_, err := c.Append(ctx, &client.Request{Partition: 9})
			return err
		},
		"high-water mark": func(ctx context.Context, c *client.Client) error {
			_, err := c.HighWaterMark(ctx, 9)
			return err
		},
		"get": func(ctx context.Context, c *client.Client) error {
			_, err := c.Get(ctx, 9, 1)
			return err
		},
		"cursor": func(ctx context.Context, c *client.Client) error {
			k, err := c.Cursor(9, "a")
			if err == nil {
				_, err = k.Set(ctx, 1)
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, c := newLog(t)
			if _, err := known.Partitions(soon(t)); err != nil {
				t.Fatal(err)
			}
			for _, c := range []*client.Client{c, known} { // one that has to ask, and one that knows
				err := ask(soon(t), c)
				if !errors.Is(err, client.ErrNoPartition) || !strings.Contains(err.Error(), "partition 9 does not exist: this cluster has 2 (0 to 1)") {
					t.Errorf("it ends with %v", err)
				}
				if errors.Is(err, client.ErrUnknown) {
					t.Errorf("the outcome is unknown: %v", err)
				}
			}
		})
	}
}
