# SPDX-License-Identifier: Apache-2.0
"""What the server's control thread does."""
