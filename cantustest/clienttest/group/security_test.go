package group_test

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/client/group"
	"github.com/cantuslog/cantus/internal/testkit"
)

// A member needs no more permissions than the group of docs/security.md has.
func TestMemberWithThePermissionsOfTheDocument(t *testing.T) {
	text, err := os.ReadFile("../../../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	roles := regexp.MustCompile("(?s)<!-- file: roles.conf -->\n```\n(.*?)```").FindSubmatch(text)
	if roles == nil {
		t.Fatal("docs/security.md has no roles.conf")
	}
	file := filepath.Join(t.TempDir(), "roles.conf")
	if err := os.WriteFile(file, roles[1], 0o600); err != nil {
		t.Fatal(err)
	}
	node, err := broker.Open(t.Context(), t.TempDir(), broker.Options{Partitions: 1, ClientListen: "127.0.0.1:0", NATSConfig: file})
	if err != nil {
		t.Fatal(err)
	}
	defer node.Close()
	nc, err := node.Conn()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if _, err := nc.Request("cantus.append.0", nil, testkit.Patience); err != nil {
		t.Fatal(err)
	}
	billing, err := nats.Connect(node.ClientURL(), nats.UserInfo("billing", "secret"), nats.CustomInboxPrefix("_INBOX_billing"), nats.Timeout(testkit.Patience))
	if err != nil {
		t.Fatal(err)
	}
	defer billing.Close()
	c, err := client.New(billing, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, leave := context.WithTimeout(t.Context(), testkit.Patience)
	defer leave()
	handled := false
	err = group.Join(ctx, c, "billing", func(context.Context, *client.Transaction) error {
		handled = true
		leave()
		return nil
	}, group.Options{MaxMembers: 2, Lease: 200 * time.Millisecond})
	if !handled {
		t.Errorf("the member handled nothing: %v", err)
	}
}
