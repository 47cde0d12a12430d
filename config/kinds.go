package config

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxDuration keeps sums and products of durations far from an overflow, and
// catches a unit that was mistaken.
const maxDuration = 24 * time.Hour

// listSeparator stands between the items of a list in a variable.
const listSeparator = ";"

func duration(key string, def time.Duration, zero, help string, field func(*Config) *time.Duration) setting {
	return setting{
		key: key, kind: "duration", def: formatDuration(def), zero: zero, help: help,
		set: func(c *Config, text string) error {
			d, err := parseDuration(text, zero != "")
			if err == nil {
				*field(c) = d
			}
			return err
		},
		get: func(c *Config) string { return formatDuration(*field(c)) },
	}
}

func parseDuration(text string, zeroAllowed bool) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	switch {
	case err != nil:
		if _, numErr := strconv.ParseFloat(text, 64); numErr == nil {
			return 0, fmt.Errorf("%q has no unit: write %ss or %sms", text, text, text)
		}
		return 0, fmt.Errorf("%q is not a duration: write for example 1s, 500ms or 2m", text)
	case d == 0 && zeroAllowed:
		return 0, nil
	case d < time.Millisecond && zeroAllowed:
		return 0, fmt.Errorf("%s is too short: write 0, or 1ms or more", text)
	case d < time.Millisecond:
		return 0, fmt.Errorf("%s is too short: write 1ms or more", text)
	case d > maxDuration:
		return 0, fmt.Errorf("%s is too long: write 24h or less", text)
	}
	return d, nil
}

// formatDuration writes 1m0s as 1m.
func formatDuration(d time.Duration) string {
	if d == 0 {
		return "0"
	}
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

func number(key string, def, least, most int, zero, help string, field func(*Config) *int) setting {
	return setting{
		key: key, kind: "number", def: strconv.Itoa(def), zero: zero, help: help,
		set: func(c *Config, text string) error {
			n, err := strconv.Atoi(text)
			if err != nil || n < least || n > most {
				return fmt.Errorf("%q is not a whole number from %d to %d", text, least, most)
			}
			*field(c) = n
			return nil
		},
		get: func(c *Config) string { return strconv.Itoa(*field(c)) },
	}
}

// units of sizes, the longest suffix first. As in postgresql.conf, a kB has
// 1024 bytes.
var units = []struct {
	name  string
	bytes uint64
}{
	{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"GB", 1 << 30}, {"MB", 1 << 20}, {"kB", 1 << 10},
	{"B", 1}, {"", 1},
}

// maxSize is far above any lag that makes sense, and fits into an int64.
const maxSize = 1 << 50

func size(key string, def uint64, zero, help string, field func(*Config) *uint64) setting {
	return setting{
		key: key, kind: "bytes", def: formatSize(def), zero: zero, help: help,
		set: func(c *Config, text string) error {
			n, err := parseSize(text)
			if err == nil {
				*field(c) = n
			}
			return err
		},
		get: func(c *Config) string { return formatSize(*field(c)) },
	}
}

func parseSize(text string) (uint64, error) {
	for _, u := range units {
		digits, ok := strings.CutSuffix(text, u.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(strings.TrimRight(digits, " "), 10, 64)
		if err != nil {
			break
		}
		if n > maxSize/u.bytes {
			return 0, fmt.Errorf("%s is too much: write 1048576GiB or less", text)
		}
		return n * u.bytes, nil
	}
	return 0, fmt.Errorf("%q is not a size: write bytes, or a whole number with kB, MB, GB, KiB, MiB or GiB", text)
}

func formatSize(n uint64) string {
	for _, u := range units[:3] {
		if n != 0 && n%u.bytes == 0 {
			return strconv.FormatUint(n/u.bytes, 10) + u.name
		}
	}
	return strconv.FormatUint(n, 10)
}

func address(key, def, empty, help string, field func(*Config) *string) setting {
	return setting{
		key: key, kind: "host:port", def: def, zero: empty, help: help,
		set: func(c *Config, text string) error {
			if text != "" || empty == "" {
				if err := checkAddress(text); err != nil {
					return err
				}
			}
			*field(c) = text
			return nil
		},
		get: func(c *Config) string { return *field(c) },
	}
}

func checkAddress(text string) error {
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		return fmt.Errorf("%q is not an address: write host:port, such as 127.0.0.1:6432 or :6432", text)
	}
	if strings.ContainsAny(host, " /,@") {
		return fmt.Errorf("%q is not the name or address of a host", host)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("port %q is not a number from 0 to 65535", port)
	}
	return nil
}

func path(key, def, empty, help string, field func(*Config) *string) setting {
	return setting{
		key: key, kind: "path", def: def, zero: empty, help: help,
		set: func(c *Config, text string) error {
			if text == "" && empty == "" {
				return errors.New("the path is empty")
			}
			*field(c) = text
			return nil
		},
		get: func(c *Config) string { return *field(c) },
	}
}

func toggle(key string, def bool, help string, field func(*Config) *bool) setting {
	return setting{
		key: key, kind: "bool", def: strconv.FormatBool(def), help: help,
		set: func(c *Config, text string) error {
			if text != "true" && text != "false" {
				return fmt.Errorf("%q is neither true nor false", text)
			}
			*field(c) = text == "true"
			return nil
		},
		get: func(c *Config) string { return strconv.FormatBool(*field(c)) },
	}
}

// list is a setting of several items, each read by parse; it is empty unless it
// is set.
func list[S ~[]T, T fmt.Stringer](key, kind, help string, field func(*Config) *S, parse func(string) (T, error)) setting {
	return setting{
		key: key, kind: "list of " + kind + "s", help: help,
		clear: func(c *Config) { *field(c) = nil },
		set: func(c *Config, text string) error {
			item, err := parse(text)
			if err == nil {
				*field(c) = append(*field(c), item)
			}
			return err
		},
		get: func(c *Config) string {
			words := make([]string, len(*field(c)))
			for i, item := range *field(c) {
				words[i] = item.String()
			}
			return strings.Join(words, listSeparator+" ")
		},
	}
}

func command(key, empty, help string, field func(*Config) *string) setting {
	return setting{
		key: key, kind: "command", zero: empty, help: help, secret: true,
		set: func(c *Config, text string) error {
			if strings.ContainsRune(text, 0) {
				return errors.New("the command holds a zero byte")
			}
			*field(c) = text
			return nil
		},
		get: func(c *Config) string { return *field(c) },
	}
}

func choice(key, def string, words []string, help string, field func(*Config) *string) setting {
	return setting{
		key: key, kind: "word", def: def, help: help,
		set: func(c *Config, text string) error {
			if !slices.Contains(words, text) {
				return notOneOf(text, words)
			}
			*field(c) = text
			return nil
		},
		get: func(c *Config) string { return *field(c) },
	}
}

func level(key, def, help string) setting {
	words := []string{"debug", "info", "warn", "error"}
	return setting{
		key: key, kind: "word", def: def, help: help,
		set: func(c *Config, text string) error {
			if !slices.Contains(words, text) {
				return notOneOf(text, words)
			}
			return c.LogLevel.UnmarshalText([]byte(text))
		},
		get: func(c *Config) string { return strings.ToLower(c.LogLevel.String()) },
	}
}

func notOneOf(text string, words []string) error {
	if len(words) == 1 {
		return fmt.Errorf("%q is not available: this version has %s only", text, words[0])
	}
	return fmt.Errorf("%q is not one of %s%s", text, strings.Join(words, ", "), didYouMean(text, words))
}
